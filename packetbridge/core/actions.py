"""What the state machine's rules do, by name. An action sees one `Step` and touches nothing else.

It puts the packets to send into the step and, where the flow changes beyond its state, the new flow.
"""

from collections.abc import Callable, Mapping

from common.tcp.activity import Activity
from common.wire import rewrite, seq, tcp_options
from packetbridge.core import opening, splice
from packetbridge.core.flow import Echoing
from packetbridge.core.step import Step


def ignore(_step: Step) -> None:
    """Nothing is sent."""


def pass_untouched(step: Step) -> None:
    step.packets.append(step.received.packet)


def remember_stranger(step: Step) -> None:
    step.is_stranger = True


def open_(step: Step) -> None:
    step.packets.append(opening.syn(step.flow))


def send_syn_again(step: Step) -> None:
    """The client retransmits. What it adds to what waits, waits too."""
    flow = step.flow
    known = (flow.client.next, flow.client.phase)
    flow.client.observe(step.received.segment, step.now)
    if (flow.client.next, flow.client.phase) != known:
        _keep(step)
    step.packets.append(opening.syn(flow))


def let_wait(step: Step) -> None:
    step.flow.client.observe(step.received.segment, step.now)
    _keep(step)


def abort_opening(step: Step) -> None:
    step.packets.append(opening.abort(step.flow))


def splice_(step: Step) -> None:
    """The SYN-ACK tells Si: join the legs and let go what waits, in the client's order."""
    flow, begun, syn_ack = step.flow, step.flow.opening, step.received.segment
    said = tcp_options.syn_options(tcp_options.parse_untrusted(syn_ack.options))
    to_backend, to_client = splice.plans(flow.service, splice.join(begun.handoff, syn_ack.seq, said))
    translated = [rewrite.applied(to_backend, packet) for packet in begun.waiting]
    isn = flow.origin.client_isn
    translated.sort(key=lambda packet: seq.distance(isn, int.from_bytes(packet.data[24:28], "big")))
    stamps = said.timestamps if begun.handoff.timestamps else None
    if stamps:
        translated = [rewrite.with_echo(packet, stamps.value) for packet in translated]
    for packet in translated:
        step.forward("bytes_to_backends", packet)
    step.flow = flow._replace(
        backend=Activity(seq.add(syn_ack.seq, 1), step.now),
        to_backend=None if stamps else to_backend,
        to_client=to_client,
        prelude=Echoing(to_backend, stamps.value) if stamps else None,
    )


def reset_both(step: Step) -> None:
    step.packets += opening.answer_with_reset(step.received.segment)
    step.packets.append(opening.refusal(step.flow))


def reset_backend(step: Step) -> None:
    step.packets += opening.answer_with_reset(step.received.segment)


def reset_and_retry(step: Step) -> None:
    """The backend still has an older connection: end it, and ask again."""
    begun = step.flow.opening
    if begun.retries >= opening.MAX_RETRIES:
        step.counters["opening_retries_exhausted"] += 1
        return
    reset_backend(step)
    step.packets.append(opening.syn(step.flow))
    step.flow = step.flow._replace(prelude=begun._replace(retries=begun.retries + 1))


def refuse_client(step: Step) -> None:
    step.packets.append(opening.refusal(step.flow))


def acknowledge_backend(step: Step) -> None:
    step.packets.append(opening.handshake_ack(step.flow, step.received.segment))


def forward_to_backend(step: Step) -> None:
    step.flow.client.observe(step.received.segment, step.now)
    step.forward("bytes_to_backends", rewrite.applied(step.flow.plans.to_backend, step.received.packet))


def forward_with_known_echo(step: Step) -> None:
    """The client still echoes the balancer; the backend is told the oldest TSval of its own instead."""
    forward_to_backend(step)
    step.packets[-1] = rewrite.with_raised_echo(step.packets[-1], step.flow.echoing.floor)


def settle(step: Step) -> None:
    """The client has seen the backend: from now on its packets need no more than their plan."""
    forward_to_backend(step)
    step.flow = step.flow._replace(to_backend=step.flow.plans.to_backend, prelude=None)


def forward_to_client(step: Step) -> None:
    step.flow.backend.observe(step.received.segment, step.now)
    step.forward("bytes_to_clients", rewrite.applied(step.flow.plans.to_client, step.received.packet))


def ask_kernel(step: Step) -> None:
    step.is_question = True


def revive(step: Step) -> None:
    step.flow.client.seen = step.now


def _keep(step: Step) -> None:
    """Let the packet wait for the backend, within bounds."""
    begun, packet = step.flow.opening, step.received.packet
    if len(packet.data) > step.room:
        step.counters["waiting_full"] += 1
        return
    more = begun._replace(
        waiting=(*begun.waiting, packet), waiting_bytes=begun.waiting_bytes + len(packet.data)
    )
    step.flow = step.flow._replace(prelude=more)


ACTIONS: Mapping[str, Callable[[Step], None]] = {
    "ignore": ignore,
    "pass_untouched": pass_untouched,
    "remember_stranger": remember_stranger,
    "open": open_,
    "send_syn_again": send_syn_again,
    "let_wait": let_wait,
    "abort_opening": abort_opening,
    "splice": splice_,
    "reset_both": reset_both,
    "reset_backend": reset_backend,
    "reset_and_retry": reset_and_retry,
    "refuse_client": refuse_client,
    "acknowledge_backend": acknowledge_backend,
    "forward_to_backend": forward_to_backend,
    "forward_with_known_echo": forward_with_known_echo,
    "settle": settle,
    "forward_to_client": forward_to_client,
    "ask_kernel": ask_kernel,
    "revive": revive,
}
