/* SipHash-2-4 (Aumasson and Bernstein, 2012) over short messages of a size that is fixed.
 *
 * A message is an array of words as its bytes lie in memory, with zeros from its end to the end of the last
 * word. A message whose size is a multiple of eight has one more word of zeros. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the words of a message are its bytes on little-endian machines only"
#endif

/* Elements of the array for a message of `size` bytes. */
#define SIPHASH_WORDS(size) ((size) / 8 + 1)

/* The 16 key bytes as two little-endian halves. */
struct siphash_key {
    __u64 low;
    __u64 high;
};

struct siphash_state {
    __u64 v0;
    __u64 v1;
    __u64 v2;
    __u64 v3;
};

static __always_inline __u64 siphash_rotated(__u64 word, __u32 bits)
{
    return word << bits | word >> (64 - bits);
}

static __always_inline void siphash_round(struct siphash_state *s)
{
    s->v0 += s->v1;
    s->v1 = siphash_rotated(s->v1, 13) ^ s->v0;
    s->v0 = siphash_rotated(s->v0, 32);
    s->v2 += s->v3;
    s->v3 = siphash_rotated(s->v3, 16) ^ s->v2;
    s->v0 += s->v3;
    s->v3 = siphash_rotated(s->v3, 21) ^ s->v0;
    s->v2 += s->v1;
    s->v1 = siphash_rotated(s->v1, 17) ^ s->v2;
    s->v2 = siphash_rotated(s->v2, 32);
}

static __always_inline void siphash_absorb(struct siphash_state *s, __u64 word)
{
    s->v3 ^= word;
    siphash_round(s);
    siphash_round(s);
    s->v0 ^= word;
}

/* The digest, whose first byte in the reference code's order is its lowest. `size` is in bytes and known to
 * the compiler. */
static __always_inline __u64 siphash24(const struct siphash_key *key, const __u64 *words, __u32 size)
{
    struct siphash_state s = {
        .v0 = key->low ^ 0x736f6d6570736575,
        .v1 = key->high ^ 0x646f72616e646f6d,
        .v2 = key->low ^ 0x6c7967656e657261,
        .v3 = key->high ^ 0x7465646279746573,
    };

#pragma unroll
    for (__u32 i = 0; i < size / 8; i++)
        siphash_absorb(&s, words[i]);
    siphash_absorb(&s, words[size / 8] | (__u64)size << 56);
    s.v2 ^= 0xff;
#pragma unroll
    for (int i = 0; i < 4; i++)
        siphash_round(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}
