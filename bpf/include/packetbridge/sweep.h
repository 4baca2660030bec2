/* Flows that are idle: which end, and which the kernel is asked about (packetbridge/core/engine.py). Those
 * that both sides have closed end at once where there is no room for a new one. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "clock.h"
#include "packetbridge/flows.h"
#include "packetbridge/maps.h"
#include "seq.h"

struct sweep {
    struct sweep_result result;
    __u32 now;
    __u32 needs_room;
};

static __always_inline int is_idle(const struct bridge_flow *flow, __u32 now)
{
    __u32 client_idle = activity_patience(&flow->client);
    __u32 backend_idle = activity_patience(&flow->backend);
    __u32 seen = seq_gt(flow->client.seen, flow->backend.seen) ? flow->client.seen : flow->backend.seen;

    if (flow->state <= STATE_ADOPTING)
        return seq_distance(flow->client.seen, now) >= OPENING_IDLE_SECONDS;
    return seq_distance(seen, now) >= (__s32)(client_idle < backend_idle ? client_idle : backend_idle);
}

/* A flow that is left. */
static __always_inline void sweep_counts(struct sweep *sweep, const struct flow_id *id,
                                         struct bridge_flow *flow)
{
    struct open_flows *of_vip = open_flows_of(id);

    flow_settle(id, flow);
    sweep->result.flows++;
    if (of_vip && flow->standing == STANDING_COUNTED)
        of_vip->swept++;
}

/* Whether a CPU is about to remove the flow, which takes it no longer than until the next sweep. The kernel
 * gives an element to a new flow as soon as it is free: a CPU that was held up before it claimed its flow may
 * have claimed the new one, and removes another. So may a row be LEAVING that Python has written back. */
static __always_inline int is_leaving(struct bridge_flow *flow)
{
    __u32 standing = flow->standing;

    if (standing == STANDING_DOUBTED)
        __sync_val_compare_and_swap(&flow->standing, STANDING_DOUBTED, STANDING_UNCOUNTED);
    if (standing != STANDING_LEAVING)
        return 0;
    __sync_val_compare_and_swap(&flow->standing, STANDING_LEAVING, STANDING_DOUBTED);
    return 1;
}

static long sweep_flow(void *map, struct flow_id *key, struct bridge_flow *flow, struct sweep *sweep)
{
    struct flow_id id = *key;

    (void)map;
    if (is_leaving(flow))
        return 0;
    if (!is_idle(flow, sweep->now) && !(sweep->needs_room && is_closed(flow))) {
        sweep_counts(sweep, &id, flow);
        return 0;
    }
    if (flow->state <= STATE_ADOPTING) {
        flow_forget(&id, flow);
    } else if (is_closed(flow)) {
        flow_end(&id, flow);
    } else {
        sweep_counts(sweep, &id, flow);
        if (!bpf_map_update_elem(&questions, &id, &sweep->now, BPF_NOEXIST))
            sweep->result.questions++;
        return 0;
    }
    sweep->result.expired++;
    return 0;
}

static long begin_open(__u32 vip_index, void *context)
{
    struct open_flows *of_vip = bpf_map_lookup_elem(&open_flows, &vip_index);

    (void)context;
    if (of_vip) {
        of_vip->swept = 0;
        of_vip->done_before = of_vip->done;
        COMPILER_BARRIER();
        of_vip->open_before = of_vip->open;
    }
    return 0;
}

/* A flow whose standing was turned during the sweep may have been seen before or after. What was swept
 * differs from what had been counted by no more than that, or else Python has deleted flows: the rest. */
static long correct_open(__u32 vip_index, void *context)
{
    struct open_flows *of_vip = bpf_map_lookup_elem(&open_flows, &vip_index);
    __s64 excess, changes;

    (void)context;
    if (!of_vip)
        return 0;
    changes = of_vip->begun - of_vip->done_before;
    excess = (__s64)of_vip->swept - of_vip->open_before;
    if (excess > changes)
        __sync_fetch_and_add(&of_vip->open, excess - changes);
    else if (excess < -changes)
        __sync_fetch_and_add(&of_vip->open, excess + changes);
    return 0;
}

/* Goes through all flows once. */
static __always_inline int sweep_flows(void)
{
    struct sweep sweep = {.now = now_seconds()};
    __u32 first = 0;
    struct sweep_result *last = bpf_map_lookup_elem(&sweep_result, &first);

    sweep.needs_room = last && last->is_full;
    bpf_loop(MAX_SERVICES, begin_open, NULL, 0);
    bpf_for_each_map_elem(&flows, sweep_flow, &sweep, 0);
    bpf_loop(MAX_SERVICES, correct_open, NULL, 0);
    bpf_map_update_elem(&sweep_result, &first, &sweep.result, BPF_ANY);
    return 0;
}
