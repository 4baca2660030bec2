/* A flow's 4-tuple in the direction of one of its packets: the 12 bytes that hashes and tags cover. */
#pragma once

#include <linux/types.h>

struct flow_key {
    __be32 source;
    __be32 destination;
    __be16 source_port;
    __be16 destination_port;
};
_Static_assert(sizeof(struct flow_key) == 12, "flow_key");
