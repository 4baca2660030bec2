/* Flows, and the tombstones that they leave (packetbridge/core/flows.py and admission.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "counters.h"
#include "packetbridge/maps.h"

/* How often a flow is looked at again that other CPUs change meanwhile. */
#define SETTLE_ATTEMPTS 4

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

/* A flow's standing is about to be turned: its VIP's count, for `turned`. */
static __always_inline struct open_flows *turning(const struct flow_id *id)
{
    struct open_flows *of_vip = open_flows_of(id);

    if (of_vip)
        __sync_fetch_and_add(&of_vip->begun, 1);
    return of_vip;
}

/* So many open flows more, or fewer. */
static __always_inline void turned(struct open_flows *of_vip, int change)
{
    if (!of_vip)
        return;
    if (change)
        __sync_fetch_and_add(&of_vip->open, change);
    __sync_fetch_and_add(&of_vip->done, 1);
}

/* Has the flow counted as open while it is not over; after every packet by which it may be, or may be not
 * any more. Of several CPUs that have changed a phase, the last to read the standing sees what all have
 * written. */
static __noinline void flow_settle(const struct flow_id *id, struct bridge_flow *flow)
{
    struct open_flows *of_vip;
    __u32 standing, due;
    int change;

    for (int attempt = 0; attempt < SETTLE_ATTEMPTS; attempt++) {
        standing = __sync_fetch_and_add(&flow->standing, 0); /* a full barrier */
        due = is_over(flow) ? STANDING_UNCOUNTED : STANDING_COUNTED;
        if (standing == due || standing >= STANDING_LEAVING)
            return;
        of_vip = turning(id);
        change = due == STANDING_COUNTED ? 1 : -1;
        if (__sync_val_compare_and_swap(&flow->standing, standing, due) != standing)
            change = 0;
        turned(of_vip, change);
    }
}

/* Makes the flow this CPU's to remove or replace, unless it is another's: then it was STANDING_LEAVING.
 * Returns how it stood. */
static __always_inline __u32 flow_claim(struct bridge_flow *flow)
{
    return __sync_lock_test_and_set(&flow->standing, STANDING_LEAVING);
}

/* Removes a flow that this CPU has claimed. Returns how many open flows more there are. */
static __always_inline int flow_remove(const struct flow_id *id, struct bridge_flow *flow, __u32 stood)
{
    int is_opening = flow->state == STATE_OPENING;
    long error = bpf_map_delete_elem(&flows, id);

    if (error && error != -ENOENT) {
        flow->standing = stood;
        return 0;
    }
    if (!error)
        count(COUNT_FLOWS_REMOVED);
    if (is_opening)
        bpf_map_delete_elem(&stash, id);
    return stood == STANDING_COUNTED ? -1 : 0;
}

/* Removes the flow; its handoff may come again. */
static __noinline void flow_forget(const struct flow_id *id, struct bridge_flow *flow)
{
    struct open_flows *of_vip = turning(id);
    __u32 stood = flow_claim(flow);

    turned(of_vip, stood == STANDING_LEAVING ? 0 : flow_remove(id, flow, stood));
}

/* Removes the flow; from now on its handoffs are replays. */
static __noinline void flow_end(const struct flow_id *id, struct bridge_flow *flow)
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
