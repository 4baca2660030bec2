/* Which routes have flows: Python removes those of nodes that are configured no more when they have none. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer/maps.h"

static long mark_route(void *map, const void *key, struct balancer_flow *flow, void *context)
{
    __be32 node = flow->node;
    struct route *route = bpf_map_lookup_elem(&routes, &node);

    (void)map, (void)key, (void)context;
    if (route)
        route->marked = 1;
    return 0;
}

static __always_inline void mark_all(void)
{
    bpf_for_each_map_elem(&flows, mark_route, NULL, 0);
}
