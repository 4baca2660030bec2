/* What the tests of the loader load: constants, one map of each kind, programs that can be told apart. */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

const volatile __u32 answer = 41;
const volatile __u8 prefix[6] = {0};
const volatile __s16 below_zero = 0;
#ifdef EXTRA_CONSTANT
const volatile __u64 extra = EXTRA_CONSTANT;
#endif

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4);
    __type(key, __u64);
    __type(value, __u32);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, __u32);
} recent SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 65537);
    __type(key, __u32);
    __type(value, __u16);
} slots SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u64[2]);
} counters SEC(".maps");

struct generation {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 3);
    __type(key, __u32);
    __type(value, __u32);
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, 1);
    __type(key, __u32);
    __array(values, struct generation);
} generations SEC(".maps");

/* Counts each packet and its length, and lets it pass on. */
SEC("tc")
int count(struct __sk_buff *skb)
{
    __u32 index = 1;
    __u64 *counter = bpf_map_lookup_elem(&counters, &index);

    if (counter) {
        counter[0] += 1;
        counter[1] += skb->len;
    }
    return TC_ACT_UNSPEC;
}

/* Tells its constants: the mark is `answer`, the cb what it was given and more; the packet loses its head. */
SEC("tc")
int tell(struct __sk_buff *skb)
{
    skb->mark = answer;
    skb->cb[0] = skb->cb[0] + skb->gso_size;
    skb->cb[1] = (__u32)(__s32)below_zero;
    skb->cb[2] = skb->ifindex;
    skb->cb[3] = skb->ingress_ifindex;
    skb->cb[4] = skb->priority;
    for (int i = 0; i < 6; i++) {
        __u8 byte = prefix[i];

        if (bpf_skb_store_bytes(skb, i, &byte, 1, 0))
            return TC_ACT_SHOT;
    }
    if (bpf_skb_change_tail(skb, skb->len - 1, 0))
        return TC_ACT_SHOT;
    return TC_ACT_UNSPEC;
}

SEC("tc")
int drop(struct __sk_buff *skb)
{
    (void)skb;
    return TC_ACT_SHOT;
}

/* The first number of the generation that is published, or what says that there is none. */
SEC("tc")
int generation(struct __sk_buff *skb)
{
    __u32 zero = 0;
    void *inner = bpf_map_lookup_elem(&generations, &zero);
    __u32 *number = inner ? bpf_map_lookup_elem(inner, &zero) : 0;

    (void)skb;
    return number ? (int)*number : -7;
}

struct request {
    __u32 index;
    __u32 next;
};

/* Marks a slot. Kernels before 6.2 let sleepable programs, as this one is, use no queue. */
SEC("syscall")
int mark(struct request *request)
{
    __u32 index = request->index;
    __u16 marked = 0xffff;

    if (bpf_map_update_elem(&slots, &index, &marked, BPF_ANY))
        return 1;
    request->next = index + 1;
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
