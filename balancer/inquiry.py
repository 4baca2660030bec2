"""What the channel knows of a node from which a health check got nothing."""

from collections.abc import Callable, Iterable

from balancer.channel import Channels
from balancer.core.channel import State
from balancer.core.hearsay import Hearsay, of_flow
from balancer.core.service import Service
from balancer.prober import Inquire, Target

_ANSWER_SECONDS = 0.5


def inquiry(channels: Channels, services: Callable[[], Iterable[Service]]) -> Inquire:
    """For `Prober`; ``services`` are those configured by now."""

    async def inquire(target: Target, client: bytes, client_port: int) -> Hearsay:
        index = target.check.vip_index
        try:
            word = channels.word(target.node)
            if word.state not in (State.OK, State.UNKNOWN):
                return Hearsay(word.state, word.text)
            found = await channels.ask_flow(target.node, index, client, client_port, _ANSWER_SECONDS)
        except KeyError:
            return Hearsay()
        of_index = {sent: seen for sent, seen in word.dscp_seen.items() if sent == index}
        problems = (
            *word.vip_map_problems(service for service in services() if service.vip_index == index),
            *word._replace(dscp_seen=of_index).marking_problems(),
        )
        if found is None:
            return Hearsay(word.state, word.text, problems)
        return Hearsay(word.state, word.text, problems, *of_flow(found.report))

    return inquire
