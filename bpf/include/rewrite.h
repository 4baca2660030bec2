/* Moving a frame's numbers from one leg of a spliced connection to the other, as common/wire/rewrite.py does.
 *
 * Addresses, ports and DSCP are the caller's. Malformed TCP options are left as they are. */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/types.h>

#include "frame.h"
#include "seq.h"
#include "tcp_options.h"

#define MAX_WINDOW 0xffff

/* What is added to the numbers in the options, modulo 2^32. */
struct option_shift {
    __u32 value;
    __u32 echo;
    /* Both ends of each SACK block. */
    __u32 sack;
    /* SACK blocks that the walk has before it. */
    __u32 blocks;
};

static __always_inline void add_be32(__u8 *bytes, __u32 delta)
{
    write_be32(bytes, read_be32(bytes) + delta);
}

static __always_inline void add_be32_pair(struct frame *f, __u64 at, __u32 first, __u32 second)
{
    if (at > OPTIONS_SIZE - 8)
        return;
    add_be32(&f->options[at], first);
    add_be32(&f->options[at + 4], second);
}

/* An option, or one of the SACK blocks that it holds. */
static long options_shift_one(__u32 index, void *context)
{
    struct option_context *walked = context;
    struct option_walk *walk = walked->walk;
    struct frame *f = walked->frame;
    struct option_shift *shift = walked->more;
    __u64 at = walk->at;

    (void)index;
    if (shift->blocks) {
        add_be32_pair(f, at, shift->sack, shift->sack);
        shift->blocks--;
        walk->at += 8;
        return 0;
    }
    if (!option_here(f, walk))
        return 1;
    if (walk->kind == KIND_SACK && walk->length % 8 == 2) {
        shift->blocks = walk->length / 8;
        walk->at += 2;
        return 0;
    }
    if (walk->kind == KIND_TIMESTAMPS && walk->length == STAMPS_LENGTH)
        add_be32_pair(f, at + 2, shift->value, shift->echo);
    walk->at += walk->length;
    return 0;
}

/* Shifts timestamps and SACK blocks, in any layout. */
__noinline int options_shift(struct frame *f, struct option_walk *walk, struct option_shift *shift)
{
    struct option_context context = {.frame = f, .walk = walk, .more = shift};

    if (!f || !walk || !shift)
        return 0;
    bpf_loop(OPTIONS_SIZE, options_shift_one, &context, 0);
    return 0;
}

/* The window field, in host byte order, shifted to the left, or by a negative number to the right. */
static __always_inline __u16 shift_window(__u16 window, int shift)
{
    __u64 wider = (__u64)window << (shift & 31);

    if (shift < 0)
        return window >> (-shift & 31);
    return wider > MAX_WINDOW ? MAX_WINDOW : wider;
}

/* Deltas are added, modulo 2^32; ack_delta to the SACK blocks too, and to the acknowledgment number where the
 * segment has one. window_shift is -14 to 14. */
static __always_inline void rewrite_numbers(struct frame *f, __u32 seq_delta, __u32 ack_delta,
                                            __u32 value_delta, __u32 echo_delta, int window_shift)
{
    f->tcp.seq = bpf_htonl(bpf_ntohl(f->tcp.seq) + seq_delta);
    if (frame_flags(f) & FLAG_ACK)
        f->tcp.ack_seq = bpf_htonl(bpf_ntohl(f->tcp.ack_seq) + ack_delta);
    f->tcp.window = bpf_htons(shift_window(bpf_ntohs(f->tcp.window), window_shift));
    if (f->tcp_size == TCP_SIZE)
        return;
    if (f->tcp_size == TCP_SIZE + USUAL_STAMPS_SIZE && has_usual_stamps(f)) {
        f->words[1] = bpf_htonl(bpf_ntohl(f->words[1]) + value_delta);
        f->words[2] = bpf_htonl(bpf_ntohl(f->words[2]) + echo_delta);
    } else {
        struct option_walk walk = {};
        struct option_shift shift = {.value = value_delta, .echo = echo_delta, .sack = ack_delta};

        options_shift(f, &walk, &shift);
    }
}

/* Sets the TSecr behind the TSval at stamps_at, as options_stamps found it; not for 0. */
__noinline int set_echo(struct frame *f, __u32 stamps_at, __u32 echo)
{
    __u64 at = stamps_at;

    if (!f || at > OPTIONS_SIZE - 8)
        return 0;
    write_be32(&f->options[at + 4], echo);
    return 0;
}

/* A TSecr that is before floor becomes floor. */
static __always_inline void raise_echo(struct frame *f, __u32 floor)
{
    __u32 value, echo;
    int at = options_stamps(f, &value, &echo);

    if (at && seq_lt(echo, floor))
        set_echo(f, at, floor);
}
