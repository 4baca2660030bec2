/* What the tests of a residence load: programs that tell which load they are of, on maps that outlive them. */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#ifndef FLOWS
#define FLOWS 16
#endif

const volatile __u32 link_header_size = 0;
const volatile __u32 generation = 0;

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, FLOWS);
    __type(key, __u32);
    __type(value, __u32);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u32);
} seen SEC(".maps");

/* The last packet that an interface let pass was seen by this generation, with this link header. */
SEC("tc")
int note(struct __sk_buff *skb)
{
    __u32 key = skb->ifindex;
    __u32 value = generation << 8 | link_header_size;

    bpf_map_update_elem(&flows, &key, &value, BPF_ANY);
    return TC_ACT_UNSPEC;
}

SEC("tc")
int drop(struct __sk_buff *skb)
{
    note(skb);
    return TC_ACT_SHOT;
}

#ifdef REFUSED
SEC("tc")
int refused(struct __sk_buff *skb)
{
    return *(__u32 *)(long)skb->data;
}
#endif

char LICENSE[] SEC("license") = "GPL";
