"""One pruning plan on all ranks."""

import json
from collections.abc import Callable
from typing import Any

from lighten.errors import UserError
from lighten.pruning.plan import Plan
from lighten.pruning.pruner import Decision
from lighten.pruning.widths import Allocation


def agree(trainer: Any, before: str | None, decide: Callable[[], Decision]) -> Decision:
    """Decide on rank zero; return the decision, or raise its error, on every rank.

    Args:
        trainer: of Lightning; its strategy joins the ranks.
        before: hash of the plan so far.
        decide: makes the decision.

    Raises:
        UserError: what the decision raised.
        RuntimeError: if ranks held different plans.
    """
    if trainer.world_size == 1:
        return decide()
    answer = json.loads(trainer.strategy.broadcast(_answer(before, decide) if trainer.is_global_zero else ""))
    if not trainer.strategy.reduce_boolean_decision(answer["before"] == before, all=True):
        raise RuntimeError(
            f"ranks hold different pruning plans at step {trainer.global_step}: their weights have drifted apart; "
            "resume from the last checkpoint"
        )
    if "error" in answer:
        raise UserError(answer["error"])
    found = answer["allocation"]
    return Plan.from_json(answer["plan"]), None if found is None else Allocation.from_json(found)


def _answer(before: str | None, decide: Callable[[], Decision]) -> str:
    try:
        plan, allocation = decide()
    except UserError as error:
        return json.dumps({"before": before, "error": str(error)})
    found = None if allocation is None else allocation.to_json()
    return json.dumps({"before": before, "plan": plan.to_json(), "allocation": found})
