/* The handoff: how the balancer tells a node of a connection, in one packet with its first payload.
 *
 * docs/handoff.md has the layout. A handoff is a frame like any; what is not said by its IP header, ports and
 * payload stands in a struct handoff. */
#pragma once

#include <linux/bpf.h>
#include <linux/tcp.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "flow_key.h"
#include "frame.h"
#include "siphash.h"
#include "tcp_options.h"

#define HANDOFF_OPTIONS_SIZE (HANDOFF_HEADER_SIZE - TCP_SIZE)
#define HANDOFF_SIGNED 49
/* Options up to the tag, in words of 32 bits. */
#define HANDOFF_SIGNED_OPTIONS 7
/* Data offset, reserved bits and flags of every handoff: 56 bytes, SYN alone. */
#define HANDOFF_OFFSET_FLAGS 0xe002
/* An experimental option (RFC 6994). */
#define HANDOFF_KIND 253
#define HANDOFF_TYPE (HANDOFF_VERSION << 4 | HANDOFF_FIRST_PAYLOAD)
#define HANDOFF_FLAGS_RESERVED 0x30
#define HANDOFF_FLAGS_SCALE 0x0f
#define HANDOFF_NOPS 0x01010101

/* Why a segment is no handoff; named as the reasons of common/wire/handoff.py. */
enum handoff_error {
    HANDOFF_NOT_A_HANDOFF = -1,
    HANDOFF_BAD_PAYLOAD = -2,
    HANDOFF_BAD_OPTIONS = -3,
    HANDOFF_UNKNOWN_VERSION = -4,
};

struct handoff {
    __u32 seq;   /* S - 1, S being the sequence number of the payload's first byte */
    __u32 ack;   /* A - 1, A being what the client acknowledged in that segment */
    __u32 value; /* the client's newest TSval, and the newest of ours that it echoed: OPTION_TIMESTAMPS */
    __u32 echo;
    __u16 window; /* the client's in bytes, at most 65535 */
    __u16 mss;
    __u16 time;          /* wall-clock seconds modulo 2^16 */
    __u8 window_scale;   /* the client's, or NO_SCALE */
    __u8 options;        /* of the client: OPTION_SACK, OPTION_TIMESTAMPS */
    __u8 promised_scale; /* what the balancer's SYN-ACK promised for the node; 0 where none was negotiated */
    __u8 fin;            /* 1: the payload is the client's last, FIN behind it */
    __u8 key_id;         /* set by handoff_parse, not read by handoff_emit */
    __u8 zero;
};
_Static_assert(sizeof(struct handoff) == 28, "handoff");

struct handoff_options {
    __u8 mss_kind;
    __u8 mss_length;
    __be16 mss;
    __u8 sack_kind;
    __u8 sack_length;
    __u8 stamps_kind;
    __u8 stamps_length;
    __be32 value;
    __be32 echo;
    __u8 nop;
    __u8 scale_kind;
    __u8 scale_length;
    __u8 scale;
    __u8 experiment_kind;
    __u8 experiment_length;
    __be16 experiment_id;
    __u8 type;
    __u8 flags;
    __be16 time;
    __u32 tag[2]; /* little-endian */
} __attribute__((may_alias));
_Static_assert(sizeof(struct handoff_options) == HANDOFF_OPTIONS_SIZE, "handoff_options");

/* The shared keys. Empty: nothing can be signed or verified. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct handoff_keys);
} handoff_keys SEC(".maps");

/* The bytes that the tag covers: flow key (12), VIP index (1), S - 1 (4), A - 1 (4), and the options up to
 * the tag (28). All behind the VIP index stands one byte off its alignment. */
union handoff_message {
    struct {
        struct flow_key key;
        __u32 shifted[3 + HANDOFF_SIGNED_OPTIONS];
        __u32 zero;
    };
    __u64 words[SIPHASH_WORDS(HANDOFF_SIGNED)];
};
_Static_assert(sizeof(union handoff_message) == 56, "handoff_message");

static __noinline __u64 handoff_tag(const struct frame *f, __u64 key_low, __u64 key_high)
{
    const struct siphash_key key = {.low = key_low, .high = key_high};
    const __be32 *options = f->words;
    union handoff_message message = {
        .key = {
            .source = f->ip.saddr,
            .destination = f->ip.daddr,
            .source_port = f->tcp.source,
            .destination_port = f->tcp.dest,
        },
    };

    message.shifted[0] = f->ip.tos >> 2 | f->tcp.seq << 8;
    message.shifted[1] = f->tcp.seq >> 24 | f->tcp.ack_seq << 8;
    message.shifted[2] = f->tcp.ack_seq >> 24 | options[0] << 8;
#pragma unroll
    for (int i = 1; i < HANDOFF_SIGNED_OPTIONS; i++)
        message.shifted[2 + i] = options[i - 1] >> 24 | options[i] << 8;
    message.shifted[2 + HANDOFF_SIGNED_OPTIONS] = options[HANDOFF_SIGNED_OPTIONS - 1] >> 24;
    return siphash24(&key, message.words, HANDOFF_SIGNED);
}

static __always_inline void handoff_emit_options(struct handoff_options *o, const struct handoff *h)
{
    int sack = h->options & OPTION_SACK, stamps = h->options & OPTION_TIMESTAMPS;
    int scaled = h->window_scale != NO_SCALE;

    o->mss_kind = KIND_MSS;
    o->mss_length = 4;
    o->mss = bpf_htons(h->mss);
    o->sack_kind = sack ? KIND_SACK_PERMITTED : KIND_NOP;
    o->sack_length = sack ? 2 : KIND_NOP;
    o->stamps_kind = stamps ? KIND_TIMESTAMPS : KIND_NOP;
    o->stamps_length = stamps ? STAMPS_LENGTH : KIND_NOP;
    o->value = stamps ? bpf_htonl(h->value) : HANDOFF_NOPS;
    o->echo = stamps ? bpf_htonl(h->echo) : HANDOFF_NOPS;
    o->nop = KIND_NOP;
    o->scale_kind = scaled ? KIND_WINDOW_SCALE : KIND_NOP;
    o->scale_length = scaled ? 3 : KIND_NOP;
    o->scale = scaled ? h->window_scale : KIND_NOP;
    o->experiment_kind = HANDOFF_KIND;
    o->experiment_length = 16;
    o->experiment_id = bpf_htons(HANDOFF_EXPERIMENT_ID);
    o->type = HANDOFF_TYPE;
    o->flags = (h->fin ? HANDOFF_FLAG_FIN : 0) | h->promised_scale;
    o->time = bpf_htons(h->time);
    o->tag[0] = 0;
    o->tag[1] = 0;
}

/* Makes the TCP header and options those of a handoff that is not signed yet, and sets the sizes for
 * f->payload. Ports and checksum stay, and what else the IP header says. */
static __always_inline void handoff_emit(struct frame *f, const struct handoff *h)
{
    f->tcp.seq = bpf_htonl(h->seq);
    f->tcp.ack_seq = bpf_htonl(h->ack);
    tcp_flag_word(&f->tcp) = bpf_htonl(HANDOFF_OFFSET_FLAGS << 16 | h->window);
    f->tcp.urg_ptr = 0;
    frame_set_sizes(f, HANDOFF_HEADER_SIZE, f->payload);
    handoff_emit_options((struct handoff_options *)f->options, h);
}

/* Puts in key id and tag of the current key. Addresses, ports and DSCP must be those that are sent. 0, or -1
 * where there is no key. */
static __always_inline int handoff_sign(struct frame *f)
{
    struct handoff_options *o = (struct handoff_options *)f->options;
    __u32 first = 0;
    const struct handoff_keys *keys = bpf_map_lookup_elem(&handoff_keys, &first);
    __u64 tag;

    if (!keys)
        return -1;
    o->flags = (o->flags & ~HANDOFF_FLAG_KEY_ID) | (keys->current_id ? HANDOFF_FLAG_KEY_ID : 0);
    tag = handoff_tag(f, keys->current_low, keys->current_high);
    o->tag[0] = tag;
    o->tag[1] = tag >> 32;
    return 0;
}

/* Whether the tag of a frame that `handoff_parse` took is right under one of the keys that its key id may
 * mean. */
static __always_inline int handoff_verify(const struct frame *f)
{
    const struct handoff_options *o = (const struct handoff_options *)f->options;
    __u32 first = 0;
    const struct handoff_keys *keys = bpf_map_lookup_elem(&handoff_keys, &first);
    __u64 tag = o->tag[0] | (__u64)o->tag[1] << 32;
    __u8 key_id = !!(o->flags & HANDOFF_FLAG_KEY_ID);

    if (!keys)
        return 0;
    if (keys->current_id == key_id && handoff_tag(f, keys->current_low, keys->current_high) == tag)
        return 1;
    return keys->has_previous && keys->previous_id == key_id &&
           handoff_tag(f, keys->previous_low, keys->previous_high) == tag;
}

/* MSS, SACK-permitted, timestamps and window scale, each exactly where it belongs. 0 or a negative enum
 * handoff_error. */
static __always_inline int handoff_parse_negotiated(const struct handoff_options *o, struct handoff *h)
{
    int has_stamps = o->stamps_kind == KIND_TIMESTAMPS && o->stamps_length == STAMPS_LENGTH;
    int has_sack = o->sack_kind == KIND_SACK_PERMITTED && o->sack_length == 2;
    int has_scale = o->scale_kind == KIND_WINDOW_SCALE && o->scale_length == 3;

    if (o->mss_kind != KIND_MSS || o->mss_length != 4 || o->nop != KIND_NOP)
        return HANDOFF_BAD_OPTIONS;
    if (!has_sack && (o->sack_kind != KIND_NOP || o->sack_length != KIND_NOP))
        return HANDOFF_BAD_OPTIONS;
    if (!has_stamps && (o->stamps_kind != KIND_NOP || o->stamps_length != KIND_NOP ||
                        o->value != HANDOFF_NOPS || o->echo != HANDOFF_NOPS))
        return HANDOFF_BAD_OPTIONS;
    if (has_scale ? o->scale > MAX_WINDOW_SCALE
                  : o->scale_kind != KIND_NOP || o->scale_length != KIND_NOP || o->scale != KIND_NOP)
        return HANDOFF_BAD_OPTIONS;
    h->mss = bpf_ntohs(o->mss);
    h->options = (has_sack ? OPTION_SACK : 0) | (has_stamps ? OPTION_TIMESTAMPS : 0);
    h->value = has_stamps ? bpf_ntohl(o->value) : 0;
    h->echo = has_stamps ? bpf_ntohl(o->echo) : 0;
    h->window_scale = has_scale ? o->scale : NO_SCALE;
    return 0;
}

/* Reads a handoff whose layout is right; tag and age are not verified. 0, or a negative enum handoff_error:
 * then what *h holds means nothing. */
static __always_inline int handoff_parse(const struct frame *f, struct handoff *h)
{
    const struct handoff_options *o = (const struct handoff_options *)f->options;
    __u32 offset_flags_window = bpf_ntohl(tcp_flag_word(&f->tcp));
    int error;

    if (offset_flags_window >> 16 != HANDOFF_OFFSET_FLAGS || f->tcp.urg_ptr)
        return HANDOFF_NOT_A_HANDOFF;
    if (!f->payload || f->payload > HANDOFF_MAX_PAYLOAD)
        return HANDOFF_BAD_PAYLOAD;
    error = handoff_parse_negotiated(o, h);
    if (error)
        return error;
    if (o->experiment_kind != HANDOFF_KIND || o->experiment_length != 16 ||
        o->experiment_id != bpf_htons(HANDOFF_EXPERIMENT_ID))
        return HANDOFF_NOT_A_HANDOFF;
    if (o->type != HANDOFF_TYPE || o->flags & HANDOFF_FLAGS_RESERVED)
        return HANDOFF_UNKNOWN_VERSION;
    h->promised_scale = o->flags & HANDOFF_FLAGS_SCALE;
    if (h->promised_scale > MAX_WINDOW_SCALE)
        return HANDOFF_BAD_OPTIONS;
    h->seq = bpf_ntohl(f->tcp.seq);
    h->ack = bpf_ntohl(f->tcp.ack_seq);
    h->window = offset_flags_window;
    h->time = bpf_ntohs(o->time);
    h->fin = !!(o->flags & HANDOFF_FLAG_FIN);
    h->key_id = !!(o->flags & HANDOFF_FLAG_KEY_ID);
    h->zero = 0;
    return 0;
}

/* Seconds since it was made, negative where its clock is ahead; -32768 to 32767. */
static __always_inline int handoff_age(const struct handoff *h, __u32 wall_seconds)
{
    return (__s16)(wall_seconds - h->time);
}
