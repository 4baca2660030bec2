/* Forgetting what is too old: flows that have been idle for longer than their phase allows, but not before
 * the cookie that they began with has lost its worth; handshakes; SYNs. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "balancer/maps.h"
#include "clock.h"
#include "counters.h"
#include "seq.h"

/* Of the last run. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct sweep_result);
} sweep_result SEC(".maps");

struct sweep_walk {
    struct sweep_result result;
    __u32 now;
};

static long sweep_flow(void *map, const void *key, struct balancer_flow *flow, struct sweep_walk *walk)
{
    int is_young = seq_distance(flow->begun, walk->now) < COOKIE_LIFETIME;

    if (is_young || !activity_is_idle(&flow->client, walk->now)) {
        walk->result.flows += 1;
    } else if (!bpf_map_delete_elem(map, key)) {
        walk->result.expired += 1;
    }
    return 0;
}

static long sweep_handshake(void *map, const void *key, struct handshake *known, struct sweep_walk *walk)
{
    if (seq_distance(known->since, walk->now) >= (__s32)verified_seconds)
        bpf_map_delete_elem(map, key);
    return 0;
}

static long sweep_hello(void *map, const void *key, struct hello *hello, struct sweep_walk *walk)
{
    if (seq_distance(hello->since, walk->now) >= COOKIE_LIFETIME)
        bpf_map_delete_elem(map, key);
    return 0;
}

/* A packet may interrupt the process that sweeps, so the counter is added to at once. */
static __always_inline void count_removed(__u64 expired)
{
    __u32 counter = COUNT_FLOWS_REMOVED;
    __u64 *number = bpf_map_lookup_elem(&counters, &counter);

    if (number)
        __sync_fetch_and_add(number, expired);
}

static __always_inline void sweep_all(void)
{
    struct sweep_walk walk = {.now = now_seconds()};
    __u32 first = 0;

    bpf_for_each_map_elem(&flows, sweep_flow, &walk, 0);
    bpf_for_each_map_elem(&verified, sweep_handshake, &walk, 0);
    bpf_for_each_map_elem(&half_open, sweep_hello, &walk, 0);
    count_removed(walk.result.expired);
    bpf_map_update_elem(&sweep_result, &first, &walk.result, BPF_ANY);
}
