/* Flows, and the tombstones that they leave (packetbridge/core/flows.py and admission.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "counters.h"
#include "packetbridge/maps.h"

static __always_inline void tombstone_name(struct tombstone_id *name, const struct flow_id *id,
                                           __u32 client_isn, __u32 balancer_isn)
{
    *name = (struct tombstone_id){
        .client = id->client,
        .client_port = id->client_port,
        .vip_index = id->vip_index,
        .client_isn = client_isn,
        .balancer_isn = balancer_isn,
    };
}

/* Whether handoffs of this connection are replays. */
static __always_inline int is_buried(const struct flow_id *id, __u32 client_isn, __u32 balancer_isn)
{
    struct tombstone_id name;
    __u32 *since;

    tombstone_name(&name, id, client_isn, balancer_isn);
    since = bpf_map_lookup_elem(&tombstones, &name);
    return since && now_seconds() - *since < TOMBSTONE_SECONDS;
}

static __always_inline void bury(const struct flow_id *id, __u32 client_isn, __u32 balancer_isn)
{
    struct tombstone_id name;
    __u32 since = now_seconds();

    tombstone_name(&name, id, client_isn, balancer_isn);
    bpf_map_update_elem(&tombstones, &name, &since, BPF_ANY);
}

/* Whether both sides have finished: the flow only waits to be forgotten. */
static __always_inline int is_closed(const struct bridge_flow *flow)
{
    return flow->client.phase == PHASE_FINISHED && flow->backend.phase == PHASE_FINISHED;
}

/* Whether nothing more is to come: both sides have finished, or one has reset the connection. */
static __always_inline int is_over(const struct bridge_flow *flow)
{
    return is_closed(flow) || flow->client.phase == PHASE_RESET || flow->backend.phase == PHASE_RESET;
}

static __always_inline struct open_flows *open_flows_of(const struct flow_id *id)
{
    __u32 vip_index = id->vip_index;

    return bpf_map_lookup_elem(&open_flows, &vip_index);
}

/* So many open flows more, or fewer. Two CPUs may count one end of a flow twice; the sweep corrects that. */
static __noinline void count_open(const struct flow_id *id, int change)
{
    struct open_flows *of_vip = open_flows_of(id);

    if (of_vip) {
        __sync_fetch_and_add(&of_vip->changes, 1);
        __sync_fetch_and_add(&of_vip->open, change);
    }
}

/* After something by which the flow may be over, or not over any more. */
static __always_inline void count_if_changed(const struct flow_id *id, int was_over, int now_over)
{
    if (was_over != now_over)
        count_open(id, was_over ? 1 : -1);
}

/* Removes the flow; its handoff may come again. */
static __always_inline void flow_forget(const struct flow_id *id, const struct bridge_flow *flow)
{
    int is_opening = flow->state == STATE_OPENING, was_over = is_over(flow);

    if (bpf_map_delete_elem(&flows, id) == 0) {
        count(COUNT_FLOWS_REMOVED);
        count_if_changed(id, was_over, 1);
    }
    if (is_opening)
        bpf_map_delete_elem(&stash, id);
}

/* Removes the flow; from now on its handoffs are replays. */
static __noinline void flow_end(const struct flow_id *id, const struct bridge_flow *flow)
{
    bury(id, flow->client_isn, flow->balancer_isn);
    flow_forget(id, flow);
}

/* The next sweep makes room, if any flow is closed. */
static __always_inline void ask_for_room(void)
{
    __u32 first = 0;
    struct sweep_result *last = bpf_map_lookup_elem(&sweep_result, &first);

    if (last)
        last->is_full = 1;
}
