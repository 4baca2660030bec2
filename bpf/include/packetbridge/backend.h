/* What a packet of the backend is to its flow, and what follows (packetbridge/core/events.py, machine.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "clock.h"
#include "packetbridge/flows.h"
#include "packetbridge/forward.h"
#include "packetbridge/opening.h"
#include "packetbridge/passage.h"
#include "packetbridge/segments.h"
#include "packetbridge/splice.h"
#include "tcp_options.h"

/* A RST from a closed port, in answer to our SYN, becomes that of the VIP. */
static __always_inline int refuse_client(struct __sk_buff *skb, struct passage *p)
{
    count(COUNT_BACKEND_REFUSAL);
    make_refusal(p);
    flow_end(&p->id, p->flow);
    return become(skb, p, TC_ACT_UNSPEC);
}

static __always_inline int backend_reset(struct __sk_buff *skb, struct passage *p, int acknowledges_syn)
{
    int verdict;

    if (p->flow->state == STATE_OPENING && acknowledges_syn)
        return refuse_client(skb, p);
    count(COUNT_BACKEND_RST);
    if (p->flow->state == STATE_OPENING)
        return TC_ACT_SHOT;
    observe(p, &p->flow->backend);
    verdict = forward_to_client(skb, p);
    flow_end(&p->id, p->flow);
    return verdict;
}

/* The SYN-ACK of our SYN. */
static __always_inline int answered(struct __sk_buff *skb, struct passage *p)
{
    struct stash *kept = bpf_map_lookup_elem(&stash, &p->id);
    struct said said;
    int has_stamps;

    if (!kept)
        return drop(COUNT_WAITING_FULL);
    has_stamps = kept->head.options & OPTION_TIMESTAMPS;
    if (!has_stamps)
        count(COUNT_SYN_ACK);
    options_syn(p->was, &said);
    if (said.malformed)
        return drop(COUNT_BAD_TCP_OPTIONS);
    if (has_stamps && !(said.options & OPTION_TIMESTAMPS)) {
        count(COUNT_SYN_ACK_LACKS_TIMESTAMPS);
        return reset_both(skb, p);
    }
    if (has_stamps)
        count(COUNT_SYN_ACK_WITH_TIMESTAMPS);
    return splice(skb, p, kept, &said);
}

static __always_inline int syn_ack_in_opening(struct __sk_buff *skb, struct passage *p, int acknowledges_syn)
{
    struct stash *kept;

    if (acknowledges_syn)
        return answered(skb, p);
    kept = bpf_map_lookup_elem(&stash, &p->id);
    if (kept && kept->head.has_replaced && bpf_ntohl(p->was->tcp.ack_seq) == kept->head.replaced_isn + 1) {
        count(COUNT_SYN_ACK_OF_REPLACED);
        return reset_and_retry(skb, p);
    }
    count(COUNT_SYN_ACK_OF_OTHER);
    flow_forget(&p->id, p->flow);
    return TC_ACT_UNSPEC;
}

static __always_inline int syn_ack_of_spliced(struct __sk_buff *skb, struct passage *p, int acknowledges_syn)
{
    if (!acknowledges_syn) {
        count(COUNT_SYN_ACK_OF_OTHER);
        flow_end(&p->id, p->flow);
        return TC_ACT_UNSPEC;
    }
    if (bpf_ntohl(p->was->tcp.seq) == p->flow->balancer_isn - p->flow->seq_delta) {
        count(COUNT_SYN_ACK_AGAIN);
        return acknowledge_backend(skb, p);
    }
    count(COUNT_SYN_ACK_RENUMBERED);
    make_reset_for_backend(p);
    if (link_swap(skb))
        return drop(COUNT_UNWRITTEN);
    return become(skb, p, to_stack(skb));
}

static __noinline int backend_event(struct __sk_buff *skb, struct passage *p)
{
    struct frame *was = p->was;
    struct bridge_flow *flow = p->flow;
    __u8 flags = frame_flags(was), control = flags & (FLAG_SYN | FLAG_ACK | FLAG_RST | FLAG_FIN);
    int acknowledges_syn = flags & FLAG_ACK && bpf_ntohl(was->tcp.ack_seq) == flow->client_isn + 1;

    if (control != FLAG_ACK && control != (FLAG_ACK | FLAG_FIN) && control != (FLAG_ACK | FLAG_SYN) &&
        (control & ~FLAG_ACK) != FLAG_RST)
        return drop(COUNT_ABSURD_FLAGS);
    if (flags & FLAG_RST)
        return backend_reset(skb, p, acknowledges_syn);
    if (flags & FLAG_SYN) {
        if (flow->state == STATE_OPENING)
            return syn_ack_in_opening(skb, p, acknowledges_syn);
        return syn_ack_of_spliced(skb, p, acknowledges_syn);
    }
    count(COUNT_BACKEND_SEGMENT);
    if (flow->state == STATE_OPENING)
        return reset_and_retry(skb, p);
    if (flow->state == STATE_ADOPTING)
        flow->state = STATE_ADOPTED;
    observe(p, &flow->backend);
    return forward_to_client(skb, p);
}

/* A packet of the flow `p->flow` from its backend, the headers being in `p->was`. */
static __always_inline int from_backend(struct __sk_buff *skb, struct passage *p)
{
    struct frame *was = p->was;
    struct activity *backend = &p->flow->backend;

    if (p->flow->state > STATE_ADOPTING && backend->phase == PHASE_OPEN && is_plain(was)) {
        activity_advance(backend, bpf_ntohl(was->tcp.seq), was->payload, now_seconds());
        return forward_to_client(skb, p);
    }
    if (!ip_checksum_holds(&was->ip))
        return drop(COUNT_BAD_IP_CHECKSUM);
    return backend_event(skb, p);
}
