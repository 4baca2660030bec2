/* TCP options (RFC 9293 section 3.1; RFC 7323; RFC 2018): what they say, and emitting them.
 *
 * Nearly every segment has the usual layout, two no-operations and timestamps, which needs no walk. */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/types.h>

#include "abi.h"
#include "frame.h"

enum option_kind {
    KIND_END = 0,
    KIND_NOP = 1,
    KIND_MSS = 2,
    KIND_WINDOW_SCALE = 3,
    KIND_SACK_PERMITTED = 4,
    KIND_SACK = 5,
    KIND_TIMESTAMPS = 8,
};

#define STAMPS_LENGTH 10
#define USUAL_STAMPS_WORD 0x0101080a
#define USUAL_STAMPS_SIZE 12
/* Where TSval stands in the usual layout. */
#define USUAL_STAMPS_AT 4

/* What a segment's options say; numbers in host byte order. */
struct said {
    /* TSval and TSecr, where OPTION_TIMESTAMPS. */
    __u32 value;
    __u32 echo;
    /* 0 where it says none. */
    __u16 mss;
    /* NO_SCALE where it says none. */
    __u8 window_scale;
    /* OPTION_SACK (permitted), OPTION_TIMESTAMPS. */
    __u8 options;
    /* Whether the walk ended at an option that has no proper length. */
    __u8 malformed;
    /* Where this TSval stands in the option area; 0 where there is none. */
    __u8 stamps_at;
    __u8 zero[2];
};

/* A walk over an option area. As an argument of a global function its numbers are unknown to the verifier,
 * which therefore looks at one step only. */
struct option_walk {
    __u32 at;
    __u32 kind;
    __u32 length;
    __u32 malformed;
    /* Whether to stop behind the first timestamps. */
    __u32 until_stamps;
};

struct option_context {
    struct frame *frame;
    struct option_walk *walk;
    void *more;
};

static __always_inline __u32 read_be32(const __u8 *bytes)
{
    return (__u32)bytes[0] << 24 | (__u32)bytes[1] << 16 | (__u32)bytes[2] << 8 | bytes[3];
}

static __always_inline void write_be32(__u8 *bytes, __u32 number)
{
    bytes[0] = number >> 24;
    bytes[1] = number >> 16;
    bytes[2] = number >> 8;
    bytes[3] = number;
}

static __always_inline int has_usual_stamps(const struct frame *f)
{
    return f->tcp_size >= TCP_SIZE + USUAL_STAMPS_SIZE && f->words[0] == bpf_htonl(USUAL_STAMPS_WORD);
}

/* The option at walk->at: its kind, and its length, which lies within the area. 0 at the end of the list, and
 * at what is malformed. The caller goes on by the length. */
static __always_inline int option_here(const struct frame *f, struct option_walk *walk)
{
    __u64 end = f->tcp_size - TCP_SIZE;
    __u64 at = walk->at;

    if (at >= OPTIONS_SIZE)
        return 0;
    barrier_var(at); /* kernel 6.1's verifier knows bounds from constants only */
    if (at >= end)
        return 0;
    walk->kind = f->options[at];
    walk->length = 1;
    if (walk->kind == KIND_END)
        return 0;
    if (walk->kind == KIND_NOP)
        return 1;
    walk->malformed = 1;
    if (at + 1 >= end)
        return 0;
    walk->length = f->options[at + 1];
    if (walk->length < 2 || at + walk->length > end)
        return 0;
    walk->malformed = 0;
    return 1;
}

/* Notes one option of a walk in a struct said. As in Linux one of a wrong length is ignored. */
static long options_note(__u32 index, void *context)
{
    struct option_context *walked = context;
    struct option_walk *walk = walked->walk;
    struct frame *f = walked->frame;
    struct said *said = walked->more;
    __u64 at = walk->at;

    (void)index;
    if (!option_here(f, walk))
        return 1;
    walk->at += walk->length;
    if (walk->kind == KIND_SACK_PERMITTED && walk->length == 2) {
        said->options |= OPTION_SACK;
    } else if (walk->kind == KIND_WINDOW_SCALE && walk->length == 3 && at <= OPTIONS_SIZE - 3) {
        said->window_scale = f->options[at + 2];
        if (said->window_scale > MAX_WINDOW_SCALE)
            said->window_scale = MAX_WINDOW_SCALE;
    } else if (walk->kind == KIND_MSS && walk->length == 4 && at <= OPTIONS_SIZE - 4) {
        said->mss = f->options[at + 2] << 8 | f->options[at + 3];
    } else if (walk->kind == KIND_TIMESTAMPS && walk->length == STAMPS_LENGTH &&
               at <= OPTIONS_SIZE - STAMPS_LENGTH) {
        said->options |= OPTION_TIMESTAMPS;
        said->stamps_at = at + 2;
        said->value = read_be32(&f->options[at + 2]);
        said->echo = read_be32(&f->options[at + 6]);
        return walk->until_stamps != 0;
    }
    return 0;
}

__noinline int options_walk_to_note(struct frame *f, struct option_walk *walk, struct said *said)
{
    struct option_context context = {.frame = f, .walk = walk, .more = said};

    if (!f || !walk || !said)
        return 0;
    bpf_loop(OPTIONS_SIZE, options_note, &context, 0);
    said->malformed = walk->malformed;
    return 0;
}

/* What a SYN's options say. The last of a repeated option counts. */
static __always_inline void options_syn(struct frame *f, struct said *said)
{
    struct option_walk walk = {};

    *said = (struct said){.window_scale = NO_SCALE};
    options_walk_to_note(f, &walk, said);
}

/* A segment's timestamps, the first if it has several: where TSval stands in the option area; 0 where there
 * are none, or something malformed in front of them, and then *value and *echo stay. */
static __always_inline int options_stamps(struct frame *f, __u32 *value, __u32 *echo)
{
    struct option_walk walk = {.until_stamps = 1};
    struct said said = {};

    if (has_usual_stamps(f)) {
        *value = bpf_ntohl(f->words[1]);
        *echo = bpf_ntohl(f->words[2]);
        return USUAL_STAMPS_AT;
    }
    if (f->tcp_size < TCP_SIZE + USUAL_STAMPS_SIZE)
        return 0;
    options_walk_to_note(f, &walk, &said);
    if (said.stamps_at) {
        *value = said.value;
        *echo = said.echo;
    }
    return said.stamps_at;
}

/* Write a SYN's option area in the order of Linux: MSS, SACK-permitted, timestamps, NOP, window scale. An MSS
 * of 0 is left out. Returns its size; the frame's sizes are the caller's. */
__noinline int options_emit_syn(struct frame *f, struct said *said)
{
    __u64 count = 0;

    if (!f || !said)
        return 0;
    if (said->mss)
        f->words[count++] = bpf_htonl(0x02040000 | said->mss);
    if (said->options & OPTION_TIMESTAMPS) {
        f->words[count++] = bpf_htonl(said->options & OPTION_SACK ? 0x0402080a : USUAL_STAMPS_WORD);
        f->words[count++] = bpf_htonl(said->value);
        f->words[count++] = bpf_htonl(said->echo);
    } else if (said->options & OPTION_SACK) {
        f->words[count++] = bpf_htonl(0x01010402);
    }
    if (said->window_scale != NO_SCALE)
        f->words[count++] = bpf_htonl(0x01030300 | said->window_scale);
    return count * 4;
}

/* The option area of a segment after the handshake that has timestamps. Returns its size. */
static __always_inline int options_emit_stamps(struct frame *f, __u32 value, __u32 echo)
{
    f->words[0] = bpf_htonl(USUAL_STAMPS_WORD);
    f->words[1] = bpf_htonl(value);
    f->words[2] = bpf_htonl(echo);
    return USUAL_STAMPS_SIZE;
}
