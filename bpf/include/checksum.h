/* The Internet checksum (RFC 1071) and differences of it (RFC 1624).
 *
 * A sum is a number of any width that is congruent, modulo 65535, to the 16-bit words as they lie in memory;
 * so none needs its bytes swapped. Adding ~word takes a word away. Whether the kernel has still to compute a
 * packet's TCP checksum is not visible here: changes go through bpf_l4_csum_replace, which knows. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/types.h>

/* 512: what bpf_csum_diff takes at once on kernels before 6.13. */
#define CHECKSUM_CHUNK 512
#define CHECKSUM_MAX_CHUNKS 128

typedef __u32 __attribute__((may_alias)) word32;

struct checksum_chunk {
    __u32 words[CHECKSUM_CHUNK / 4];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct checksum_chunk);
} checksum_chunks SEC(".maps");

struct checksum_walk {
    struct __sk_buff *skb;
    struct checksum_chunk *chunk;
    __u32 *sum;
    __u32 at;
    __u32 size;
};

/* 32 bits, as a __wsum. */
static __always_inline __u32 sum_fold32(__u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    return sum;
}

static __always_inline __u16 sum_fold(__u64 sum)
{
    __u32 folded = sum_fold32(sum);

    folded = (folded & 0xffff) + (folded >> 16);
    folded = (folded & 0xffff) + (folded >> 16);
    return folded;
}

/* The sum of 32-bit words; count is a constant. */
static __always_inline __u64 sum_words(const void *area, __u32 count)
{
    const word32 *words = area;
    __u64 sum = 0;

#pragma clang loop unroll(full)
    for (__u32 at = 0; at < count; at++)
        sum += words[at];
    return sum;
}

/* What sum_words(is) is more than sum_words(was). */
static __always_inline __u64 sum_words_diff(const void *was, const void *is, __u32 count)
{
    const word32 *old = was, *new = is;
    __u64 sum = 0;

#pragma clang loop unroll(full)
    for (__u32 at = 0; at < count; at++)
        sum += (__u64)new[at] + (__u32)~old[at];
    return sum;
}

static long checksum_step(__u32 index, void *context)
{
    struct checksum_walk *walk = context;
    struct checksum_chunk *chunk = walk->chunk;
    __u32 *sum = walk->sum;
    __u64 done = (__u64)index * CHECKSUM_CHUNK;
    __u64 left = walk->size - done, last;

    if (done >= walk->size)
        return 1;
    if (left > CHECKSUM_CHUNK)
        left = CHECKSUM_CHUNK;
    barrier_var(left);
    left = ((left - 1) & (CHECKSUM_CHUNK - 1)) + 1; /* the same, so that the verifier sees that it is not 0 */
    last = (left - 1) / 4;
    chunk->words[last] = 0;
    if (bpf_skb_load_bytes(walk->skb, walk->at + done, chunk, left))
        return 1;
    *sum = bpf_csum_diff(0, 0, chunk->words, last * 4 + 4, *sum);
    return 0;
}

/* Adds to *sum the bytes of the packet from offset at on, whose place in the summed data is even.
 * 0, or -1 where it has not so many; *sum is a __wsum. */
__noinline int skb_sum(struct __sk_buff *skb, __u32 at, __u32 size, __u32 *sum)
{
    __u32 first = 0;
    struct checksum_walk walk = {.skb = skb, .sum = sum, .at = at, .size = size};

    if (!sum || at + (__u64)size > skb->len)
        return -1;
    walk.chunk = bpf_map_lookup_elem(&checksum_chunks, &first);
    if (!walk.chunk)
        return -1;
    bpf_loop(CHECKSUM_MAX_CHUNKS, checksum_step, &walk, 0);
    return 0;
}
