/* Equivalent spellings of a request target become one key (RFC 3986 section 6.2.2).
 *
 * The rules are those of common/hashing/normalise.py, whose second one is its automaton. Neither makes text
 * longer, so the key is written over the target that it is made from. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "octets.h"
#include "room.h"

#define NORMALISE_NO_LIMIT 0xffffffff
/* Bytes that are copied in one step at most. */
#define NORMALISE_RUN 16

enum normalise_state {
    NORMALISE_PLAIN,
    NORMALISE_SLASH,
    NORMALISE_DOT, /* it came behind a slash and is held back */
    NORMALISE_QUERY,
};

/* In map memory. */
struct normaliser {
    __u32 from; /* what is read next, up to `end` */
    __u32 to;   /* where the key is written next */
    __u32 path_end;
    __u32 end;
    __u32 slashes; /* how many more the key may have */
    __u32 state;
    __u32 is_malformed; /* a `%` without two hex digits has come */
};

struct normalisation {
    struct room *room;
    struct normaliser *n;
};

static __always_inline __u8 hex_value(__u8 digit)
{
    return (digit & 0x0f) + (digit >> 6) * 9;
}

static __always_inline __u8 hex_upper(__u8 digit)
{
    return digit >= 'a' ? digit - ('a' - 'A') : digit;
}

static __always_inline void normalise_put(struct room *room, struct normaliser *n, __u8 byte)
{
    *room_at(room, n->to) = byte;
    n->to++;
}

/* One byte that rule 1 yields. 1 where the key ends in front of it. */
static __always_inline int normalise_take(struct room *room, struct normaliser *n, __u8 byte)
{
    if (n->state == NORMALISE_QUERY) {
        normalise_put(room, n, byte);
        return 0;
    }
    if (byte == '/') {
        if (n->state == NORMALISE_PLAIN) {
            if (!n->slashes)
                return 1;
            n->slashes--;
            normalise_put(room, n, '/');
        }
        n->state = NORMALISE_SLASH;
        return 0;
    }
    if (byte == '.' && n->state == NORMALISE_SLASH) {
        n->state = NORMALISE_DOT;
        return 0;
    }
    if (n->state == NORMALISE_DOT)
        normalise_put(room, n, '.');
    normalise_put(room, n, byte);
    n->state = NORMALISE_PLAIN;
    return 0;
}

/* `%` and two hex digits. */
static __always_inline int normalise_take_encoded(struct room *room, struct normaliser *n, __u8 high,
                                                  __u8 low)
{
    __u8 byte = hex_value(high) << 4 | hex_value(low);

    n->from += 2;
    if (octet_class[byte] & OCTET_UNRESERVED)
        return normalise_take(room, n, byte);
    normalise_take(room, n, '%');
    normalise_put(room, n, hex_upper(high));
    normalise_put(room, n, hex_upper(low));
    return 0;
}

/* Copies bytes that neither rule concerns. How many. */
static __always_inline __u32 normalise_run(struct room *room, struct normaliser *n)
{
    const __u8 *text = room_at(room, n->from);
    __u8 *key = room_at(room, n->to);
    __u32 left = (n->state == NORMALISE_QUERY ? n->end : n->path_end) - n->from, run;

    if (n->state != NORMALISE_PLAIN && n->state != NORMALISE_QUERY)
        return 0;
    for (run = 0; run < NORMALISE_RUN; run++) {
        __u8 byte = text[run];

        if (run == left || octet_class[byte] & (OCTET_MARK | OCTET_SLASH))
            break;
        key[run] = byte;
    }
    n->from += run;
    n->to += run;
    return run;
}

static long normalise_step(__u32 index __attribute__((unused)), struct normalisation *of)
{
    struct room *room = of->room;
    struct normaliser *n = of->n;
    const __u8 *text = room_at(room, n->from);
    __u8 byte = text[0], high = text[1], low = text[2];

    if (n->from >= n->end)
        return 1;
    if (normalise_run(room, n))
        return 0;
    if (n->from == n->path_end) {
        n->state = NORMALISE_QUERY;
        n->is_malformed = 0;
    }
    n->from++;
    if (byte == '%' && !n->is_malformed) {
        if (octet_class[high] & octet_class[low] & OCTET_HEX)
            return normalise_take_encoded(room, n, high, low);
        n->is_malformed = 1;
    }
    return normalise_take(room, n, byte);
}

/* Makes the key of what stands in the room from `from` to `end`: a path, and if `path_end` comes earlier, a
 * `?` there and a query behind it. The key begins at `from`, too, and ends in front of the slash that is one
 * more than `slashes`. Its size is the answer. */
static __always_inline __u32 normalise(struct room *room, struct normaliser *n, __u32 from, __u32 path_end,
                                       __u32 end, __u32 slashes)
{
    struct normalisation of = {.room = room, .n = n};

    n->from = from;
    n->to = from;
    n->path_end = path_end;
    n->end = end;
    n->slashes = slashes;
    n->state = NORMALISE_PLAIN;
    n->is_malformed = 0;
    bpf_loop(ROOM_SIZE, normalise_step, &of, 0);
    return n->to - from;
}
