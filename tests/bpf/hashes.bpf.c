/* What the tests of hashes, cookies, handoffs and request lines run. Arguments come in `given`, in the cb or
 * in the packet behind its link header; numbers go back in the cb. */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "handoff.h"
#include "request_line.h"
#include "siphash.h"
#include "syncookie.h"
#include "xxh64.h"

#define LONGEST_HASHED 49
/* Bytes of text that fit a packet, which has 16 KiB at most. */
#define LONGEST_REQUEST (ROOM_SIZE - ROOM_REACH)

struct given {
    struct balancer_service service;
    struct handoff handoff;
    struct flow_key key;
    __u32 client_isn;
    __u32 isn;
    __u32 mss;
    __u32 period;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct given);
} givens SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct room);
} texts SEC(".maps");

static __always_inline struct given *given(void)
{
    __u32 first = 0;

    return bpf_map_lookup_elem(&givens, &first);
}

static __always_inline void tell(struct __sk_buff *skb, __u64 number)
{
    skb->cb[0] = number;
    skb->cb[1] = number >> 32;
}

/* Message and key stand in the packet, the key first. */
static __always_inline int siphash_of_packet(struct __sk_buff *skb, __u32 size)
{
    __u64 words[SIPHASH_WORDS(LONGEST_HASHED)] = {};
    struct siphash_key key = {};

    if (bpf_skb_load_bytes(skb, LINK, &key, sizeof(key)))
        return TC_ACT_SHOT;
    if (bpf_skb_load_bytes(skb, LINK + sizeof(key), words, size))
        return TC_ACT_SHOT;
    tell(skb, siphash24(&key, words, size));
    return TC_ACT_OK;
}

SEC("tc")
int siphash_of_21(struct __sk_buff *skb)
{
    return siphash_of_packet(skb, 21);
}

SEC("tc")
int siphash_of_49(struct __sk_buff *skb)
{
    return siphash_of_packet(skb, 49);
}

SEC("tc")
int siphash_of_15(struct __sk_buff *skb)
{
    return siphash_of_packet(skb, 15);
}

SEC("tc")
int siphash_of_8(struct __sk_buff *skb)
{
    return siphash_of_packet(skb, 8);
}

/* Of the text; cb: where, how many bytes, seed. */
SEC("tc")
int xxh64_of_text(struct __sk_buff *skb)
{
    __u32 first = 0;
    struct room *room = bpf_map_lookup_elem(&texts, &first);

    if (!room)
        return TC_ACT_SHOT;
    tell(skb, xxh64(room, skb->cb[0], skb->cb[1], skb->cb[2] | (__u64)skb->cb[3] << 32));
    return TC_ACT_OK;
}

/* cb: seed. */
SEC("tc")
int xxh64_of_flow_key(struct __sk_buff *skb)
{
    const struct given *g = given();

    if (!g)
        return TC_ACT_SHOT;
    tell(skb, xxh64_flow_key(&g->key, skb->cb[0] | (__u64)skb->cb[1] << 32));
    return TC_ACT_OK;
}

SEC("tc")
int make_cookie(struct __sk_buff *skb)
{
    const struct given *g = given();

    if (!g)
        return TC_ACT_SHOT;
    tell(skb, cookie_make(&g->key, g->client_isn, g->mss, g->period));
    return TC_ACT_OK;
}

SEC("tc")
int check_cookie(struct __sk_buff *skb)
{
    const struct given *g = given();

    (void)skb;
    return g ? cookie_check(&g->key, g->client_isn, g->isn, g->period) : -2;
}

/* cb: ticks, window scale, options. Back come the stamp, and what is read out of it. */
SEC("tc")
int make_stamp(struct __sk_buff *skb)
{
    __u32 stamp = cookie_stamp(skb->cb[0], skb->cb[1], skb->cb[2]);

    skb->cb[0] = stamp;
    skb->cb[1] = cookie_stamped_scale(stamp);
    skb->cb[2] = cookie_stamped_options(stamp);
    return TC_ACT_OK;
}

/* The packet, which is addressed as the handoff is, becomes one. */
SEC("tc")
int make_handoff(struct __sk_buff *skb)
{
    const struct given *g = given();
    struct frame was = {}, is;

    if (!g || frame_load(skb, &was))
        return TC_ACT_SHOT;
    is = was;
    handoff_emit(&is, &g->handoff);
    ip_update(&was.ip, &is.ip);
    if (handoff_sign(&is))
        return TC_ACT_STOLEN;
    return frame_commit(skb, &was, &is, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

/* 1: right tag, 0: another, negative: enum handoff_error. cb: wall-clock seconds; back comes the age. */
SEC("tc")
int read_handoff(struct __sk_buff *skb)
{
    struct given *g = given();
    struct frame f = {};
    int error;

    if (!g || frame_load(skb, &f))
        return TC_ACT_SHOT;
    error = handoff_parse(&f, &g->handoff);
    if (error)
        return error;
    skb->cb[0] = handoff_age(&g->handoff, skb->cb[0]);
    return handoff_verify(&f);
}

static __always_inline int read_payload(struct __sk_buff *skb)
{
    const struct given *g = given();
    int verdict;

    if (!g)
        return -1;
    verdict = request_read(skb, &g->service, LINK, skb->len - LINK);
    if (verdict == REQUEST_KEY)
        tell(skb, request_hash(g->service.hash_seed));
    return verdict;
}

/* An enum request_verdict; with REQUEST_KEY the key's digest. */
SEC("tc")
int read_request(struct __sk_buff *skb)
{
    return read_payload(skb);
}

struct filling {
    struct __sk_buff *skb;
    struct room *room;
};

static long fill_packet(__u32 index, struct filling *of)
{
    __u64 at = index * ROOM_REACH;

    return bpf_skb_store_bytes(of->skb, LINK + at, room_at(of->room, at), ROOM_REACH, 0) != 0;
}

/* The same for the text, whose size is in the cb: more than a packet may have from the beginning. */
SEC("tc")
int read_long_request(struct __sk_buff *skb)
{
    __u32 first = 0, was = skb->len, size = skb->cb[0];
    struct filling of = {.skb = skb, .room = bpf_map_lookup_elem(&texts, &first)};
    int verdict;

    if (!of.room || bpf_skb_change_tail(skb, LINK + LONGEST_REQUEST, 0))
        return -1;
    bpf_loop(LONGEST_REQUEST / ROOM_REACH, fill_packet, &of, 0);
    if (bpf_skb_change_tail(skb, LINK + size, 0))
        return -1;
    verdict = read_payload(skb);
    return bpf_skb_change_tail(skb, was, 0) ? -1 : verdict;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
