"""Voting: orders, correctness, reducers, confidence and their statistics. Pure numbers, NumPy at most."""

from opengrm.voting.confidence import confidence, lead_probability
from opengrm.voting.correctness import correct, correct_rows, credit, credit_rows, label_of
from opengrm.voting.intervals import Interval, RunningShare, normal_interval, share_interval, wilson
from opengrm.voting.orders import ORDER_KINDS, OrderKind, plan_orders
from opengrm.voting.reducers import REDUCERS, Reducer, reduce_votes, shares, verdict_of, vote

__all__ = [
    "ORDER_KINDS",
    "REDUCERS",
    "Interval",
    "OrderKind",
    "Reducer",
    "RunningShare",
    "confidence",
    "correct",
    "correct_rows",
    "credit",
    "credit_rows",
    "label_of",
    "lead_probability",
    "normal_interval",
    "plan_orders",
    "reduce_votes",
    "share_interval",
    "shares",
    "verdict_of",
    "vote",
    "wilson",
]
