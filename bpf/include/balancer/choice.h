/* Choosing the node of a hash, as balancer/core/choice.py and loads.py do: by the Maglev table, and where
 * loads are bounded by further look-ups (common/hashing/sequence.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer/arrival.h"
#include "balancer/maps.h"
#include "balancer_abi.h"
#include "counters.h"
#include "xxh64.h"

struct lookups {
    __u64 hash;
    __u64 total;
    __u32 table;
    __u32 index;
    __u32 factor;
    __u32 weights;
    __be32 first;
    /* 0 until one admits. */
    __be32 chosen;
    __u32 number;
    __u32 zero;
};

static __always_inline __be32 node_in_slot(__u32 number, __u64 hash)
{
    __u64 slot = hash % MAGLEV_SIZE;
    __u32 first = 0;
    void *inner = bpf_map_lookup_elem(&tables, &number);
    struct maglev_table *table = inner ? bpf_map_lookup_elem(inner, &first) : NULL;

    asm volatile("" : "+r"(slot)); /* has the compiler keep the comparison, which the verifier wants */
    return table && slot < MAGLEV_SIZE ? table->slots[slot] : 0;
}

/* What may seem negative while Python writes is none. */
static __always_inline __u64 flows_of(__s64 base, const __u64 *handed_since)
{
    __s64 flows = base + (handed_since ? *(volatile __u64 *)handed_since : 0);

    return flows < 0 ? 0 : flows;
}

/* Whether the node may be given one more flow. */
static __always_inline int node_admits(const struct lookups *l, __be32 node)
{
    struct node_id id = {.node = node, .vip_index = l->index};
    struct node_row *row = bpf_map_lookup_elem(&nodes, &id);
    __u64 load;

    if (!row || !row->is_bounded)
        return 1;
    load = flows_of(row->base, bpf_map_lookup_elem(&handed, &id));
    return load * l->weights * FACTOR_ONE < l->factor * (l->total + 1) * row->weight;
}

static long look_up(__u32 number, struct lookups *l)
{
    __be32 node = node_in_slot(l->table, number ? xxh64_word(l->hash, number) : l->hash);

    if (!number)
        l->first = node;
    if (!node_admits(l, node))
        return 0;
    l->chosen = node;
    l->number = number;
    return 1;
}

/* The node of a hash under a load factor. */
static __always_inline __be32 choose_bounded(struct arrival *a, __u64 hash, const struct service_load *load)
{
    __u32 index = a->service.vip_index;
    struct lookups l = {
        .hash = hash,
        .total = flows_of(load->base, bpf_map_lookup_elem(&handed_total, &index)),
        .table = a->service.table,
        .index = index,
        .factor = load->factor,
        .weights = load->weights,
    };

    bpf_loop(MAX_LOOKUPS, look_up, &l, 0);
    if (!l.chosen) {
        a->choice = CHOICE_ALL_AT_BOUND;
        return l.first;
    }
    if (l.number)
        a->choice = CHOICE_BOUNDED_AWAY;
    return l.chosen;
}

/* The node of a hash; 0 where no node can take a connection. */
__attribute__((noinline)) __u32 choose(__u64 hash)
{
    struct arrival *a = arrival_here();
    struct service_load *load;
    __u32 index;

    if (!a || !a->service.table)
        return 0;
    a->choice = CHOICE_FIRST;
    index = a->service.vip_index;
    load = bpf_map_lookup_elem(&loads, &index);
    return load && load->factor ? choose_bounded(a, hash, load) : node_in_slot(a->service.table, hash);
}

/* A new flow has this node. */
static __always_inline void count_handed(const struct arrival *a, __be32 node)
{
    struct node_id id = {.node = node, .vip_index = a->service.vip_index};
    struct node_row *row = bpf_map_lookup_elem(&nodes, &id);
    __u64 *number = bpf_map_lookup_elem(&handed, &id);
    __u32 index = id.vip_index;

    if (number)
        __sync_fetch_and_add(number, 1);
    number = row && row->is_bounded && row->weight ? bpf_map_lookup_elem(&handed_total, &index) : NULL;
    if (number)
        __sync_fetch_and_add(number, 1);
    if (a->choice == CHOICE_BOUNDED_AWAY)
        count(COUNT_BOUNDED_AWAY);
    else if (a->choice == CHOICE_ALL_AT_BOUND)
        count(COUNT_ALL_AT_BOUND);
}
