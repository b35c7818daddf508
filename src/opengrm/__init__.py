"""OpenGRM: generative reward models trained by Self-Principled Critique Tuning."""

__version__ = "0.1.0"
