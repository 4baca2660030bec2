/* Sequence number arithmetic modulo 2^32 (RFC 9293 section 3.4), in host byte order.
 *
 * Comparisons are meaningful for numbers less than 2^31 apart. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/types.h>

/* Signed number of steps from start to end. */
static __always_inline __s32 seq_distance(__u32 start, __u32 end)
{
    return (__s32)(end - start);
}

static __always_inline int seq_lt(__u32 left, __u32 right)
{
    return seq_distance(right, left) < 0;
}

static __always_inline int seq_le(__u32 left, __u32 right)
{
    return seq_distance(right, left) <= 0;
}

static __always_inline int seq_gt(__u32 left, __u32 right)
{
    return seq_distance(right, left) > 0;
}

static __always_inline int seq_ge(__u32 left, __u32 right)
{
    return seq_distance(right, left) >= 0;
}

/* Whether the numbers are less than reach apart, in either direction. */
static __always_inline int seq_within(__u32 one, __u32 other, __u32 reach)
{
    return one - other < reach || other - one < reach;
}
