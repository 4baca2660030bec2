/* The verifier refuses this: a read that no bound was checked for. */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("tc")
int overrun(struct __sk_buff *skb)
{
    __u8 *data = (__u8 *)(long)skb->data;

    return data[60];
}

char LICENSE[] SEC("license") = "GPL";
