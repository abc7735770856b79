"""A dry run as text."""

from __future__ import annotations

import yaml

from labn.runs.plan import Plan

_NUM_EPOCHS_SHOWN = 8


def plan_as_text(plan: Plan) -> str:
    """Return a plan as text: the configuration as YAML, then what follows from it."""
    subsets = [
        f"  {subset:10}  " + ", ".join(f"{count} {name}" for name, count in counts.items())
        for subset, counts in plan.data["subsets"].items()
    ]
    height, width = plan.attention_size
    counts = plan.parameters
    return "\n".join(
        [
            yaml.safe_dump(plan.config, sort_keys=False).rstrip(),
            "",
            f"network: {counts['total']:,} parameters"
            f" (LFE {counts['lfe']:,}, LAB {counts['lab']:,}, LPB {counts['lpb']:,});"
            f" attention map {height} x {width}",
            f"device: {plan.device}, precision {plan.precision}",
            "data:",
            *subsets,
            f"  mean {plan.data['mean']}, standard deviation {plan.data['std']}",
            f"schedule: {plan.schedule['steps_per_epoch']} steps per epoch,"
            f" {plan.schedule['num_steps']} in all",
            *_schedule_lines(plan),
            "nothing was trained (--dry-run)",
        ]
    )


def _schedule_lines(plan: Plan) -> list[str]:
    heads = plan.schedule["learning_rate_head_by_epoch"]
    backbones = plan.schedule["learning_rate_backbone_by_epoch"]
    step = max(1, -(-len(heads) // _NUM_EPOCHS_SHOWN))
    shown = sorted({*range(0, len(heads), step), len(heads) - 1})
    return ["  epoch  head      backbone"] + [
        f"  {epoch + 1:5}  {heads[epoch]:.2e}  {backbones[epoch]:.2e}" for epoch in shown
    ]
