/* Counters that only grow. The daemon's own header numbers them: enum counter. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/types.h>

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 64);
    __type(key, __u32);
    __type(value, __u64);
} counters SEC(".maps");

static __always_inline void count_more(__u32 counter, __u64 by)
{
    __u64 *number = bpf_map_lookup_elem(&counters, &counter);

    if (number)
        *number += by;
}

static __always_inline void count(__u32 counter)
{
    count_more(counter, 1);
}
