/* Services that are gone, and all that is known of their connections. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer/maps.h"
#include "forgetting.h"

static long forget_flow(void *map, const struct flow_id *key, const void *flow, struct forgetting *asked)
{
    (void)flow;
    if (forgets(asked, key->vip_index) && !bpf_map_delete_elem(map, key))
        asked->flows++;
    return 0;
}

static long forget_other(void *map, const struct flow_id *key, const void *value, struct forgetting *asked)
{
    (void)value;
    if (forgets(asked, key->vip_index))
        bpf_map_delete_elem(map, key);
    return 0;
}

static __always_inline void forget_all(struct forgetting *asked)
{
    bpf_for_each_map_elem(&flows, forget_flow, asked, 0);
    bpf_for_each_map_elem(&verified, forget_other, asked, 0);
    bpf_for_each_map_elem(&half_open, forget_other, asked, 0);
    bpf_for_each_map_elem(&claims, forget_other, asked, 0);
}
