/* Connections that Python decides on.
 *
 * Every segment of a claimed one is passed up as it came. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer/arrival.h"
#include "balancer/maps.h"
#include "counters.h"
#include "limit.h"

#define NOT_CLAIMED (-2)
#define EEXIST 17

static __always_inline int pass_up(void)
{
    count(COUNT_PASSED_UP);
    return bpf_redirect(tun_ifindex, 0);
}

static __always_inline int is_claimed(const struct arrival *a)
{
    return bpf_map_lookup_elem(&claims, &a->id) != NULL;
}

/* The verdict that passes the segment up, or NOT_CLAIMED where Python has enough to do. */
static __always_inline int claim(const struct arrival *a)
{
    long error = -1;

    if (limit_take_at(LIMIT_CLAIMS, claims_per_second))
        error = bpf_map_update_elem(&claims, &a->id, &a->now, BPF_NOEXIST);
    if (error && error != -EEXIST) {
        count(COUNT_PASSED_UP_LIMITED);
        return NOT_CLAIMED;
    }
    return pass_up();
}
