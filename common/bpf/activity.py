"""`common.tcp.activity.Activity` in a map's value."""

from common.bpf.abi import ActivityCell, PhaseNumber
from common.tcp.activity import Activity, Phase


def cell_of(activity: Activity) -> ActivityCell:
    return ActivityCell(
        next=activity.next,
        fin=activity.fin or 0,
        seen=int(activity.seen),
        phase=PhaseNumber[activity.phase.name],
        has_fin=activity.fin is not None,
    )


def from_cell(cell: ActivityCell) -> Activity:
    activity = Activity(cell.next, float(cell.seen))
    activity.phase = Phase[PhaseNumber(cell.phase).name]
    activity.fin = cell.fin if cell.has_fin else None
    return activity
