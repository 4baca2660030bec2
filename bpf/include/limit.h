/* How often something may happen: at most per_second times at once, and so often a second in the long run.
 *
 * A token bucket as one number (the generic cell rate algorithm): when the next event would be due if all
 * came evenly. An event is refused where that would be more than a second ahead. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/types.h>

#include "clock.h"

/* Other CPUs that got in between before an event is refused. */
#define LIMIT_ATTEMPTS 4

/* What the limits are of is the daemon's matter. Values begin at 0, a full bucket. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 8);
    __type(key, __u32);
    __type(value, __u64);
} limits SEC(".maps");

/* Whether it may happen now; if so, it counts as done. */
static __always_inline int limit_take(__u64 *arrival, __u32 per_second, __u64 now)
{
    if (!per_second)
        return 0;
    __u64 interval = NS_PER_SECOND / per_second;

    for (int attempt = 0; attempt < LIMIT_ATTEMPTS; attempt++) {
        __u64 due = *(volatile __u64 *)arrival;
        __u64 next = (due > now ? due : now) + interval;

        if (next - now > interval * per_second)
            return 0;
        if (__sync_val_compare_and_swap(arrival, due, next) == due)
            return 1;
    }
    return 0;
}

/* limit_take on an element of map `limits`. */
static __always_inline int limit_take_at(__u32 limit, __u32 per_second)
{
    __u64 *arrival = bpf_map_lookup_elem(&limits, &limit);

    return arrival && limit_take(arrival, per_second, now_ns());
}
