/* The rest of a first payload that was cut comes in again, through this CPU's backlog, as ordinary data. What
 * the client sends behind it goes the same way, so that it does not overtake it, as long as it acknowledges
 * nothing of the node's. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include "balancer/arrival.h"
#include "balancer_abi.h"

/* Whether the segment, which acknowledges `ack`, is to go round first. One that somebody else has marked does
 * not. */
static __always_inline int goes_round(struct __sk_buff *skb, struct balancer_flow *flow, __u32 ack)
{
    if (!(flow->options & FIRST_WAS_CUT))
        return 0;
    if (skb->mark == WENT_ROUND) {
        skb->mark = 0;
        return 0;
    }
    if (ack != flow->isn + 1) {
        flow->options &= ~FIRST_WAS_CUT;
        return 0;
    }
    if (skb->mark)
        return 0;
    skb->mark = WENT_ROUND;
    return 1;
}

static __always_inline int go_round(struct __sk_buff *skb)
{
    return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}
