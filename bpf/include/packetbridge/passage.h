/* One packet on its way through a program, and what becomes of it.
 *
 * Functions that settle a packet's fate return the program's verdict: UNSPEC lets the packet go on as it then
 * is, to the stack or to the link. */
#pragma once

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "counters.h"
#include "frame.h"
#include "packetbridge/maps.h"
#include "packetbridge_abi.h"

struct passage {
    struct scratch *scratch;
    /* The packet's headers as it came, and as it is to be: those of scratch. */
    struct frame *was;
    struct frame *is;
    struct bridge_service *service;
    /* NULL where it is unknown. */
    struct bridge_flow *flow;
    struct flow_id id;
    /* Whether it comes from this CPU's backlog, where it was sent before. */
    int went_round;
};

/* Whether it has ACK, and neither SYN nor FIN nor RST. */
static __always_inline int is_plain(const struct frame *f)
{
    return (frame_flags(f) & (FLAG_ACK | FLAG_SYN | FLAG_FIN | FLAG_RST)) == FLAG_ACK;
}

static __always_inline int drop(enum counter reason)
{
    count(reason);
    return TC_ACT_SHOT;
}

/* For a packet whose headers cannot be read; error is of enum frame_error. */
static __always_inline int drop_unreadable(int error)
{
    switch (error) {
    case FRAME_BAD_IP_CHECKSUM:
        return drop(COUNT_BAD_IP_CHECKSUM);
    case FRAME_FRAGMENT:
        return drop(COUNT_FRAGMENT);
    case FRAME_IP_OPTIONS:
        return drop(COUNT_IP_OPTIONS);
    case FRAME_BAD_DATA_OFFSET:
        return drop(COUNT_BAD_DATA_OFFSET);
    default:
        return drop(COUNT_TRUNCATED);
    }
}

/* To the local stack through this CPU's backlog. A packet that came out of the stack has had its MAC
 * addresses exchanged. */
static __always_inline int to_stack(struct __sk_buff *skb)
{
    return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* To where the kernel routes it, for a packet that came in. */
static __always_inline int to_routing(void)
{
    return bpf_redirect(tun_ifindex, BPF_F_INGRESS);
}

static __always_inline int to_python(void)
{
    return bpf_redirect(tun_ifindex, 0);
}
