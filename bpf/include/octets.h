/* What each byte may be in a request line, a bit each (RFC 9110 section 5.6.2, RFC 3986 section 2). */
#pragma once

#include <linux/types.h>

#define OCTET_TOKEN 0x01
/* Letters, digits, `-` `.` `_` `~`. */
#define OCTET_UNRESERVED 0x02
#define OCTET_HEX 0x04
/* Ends a request-target: controls, the space. Servers tolerate all else in it. */
#define OCTET_END 0x08
/* `#` `%`: something else than usual begins in path and query. */
#define OCTET_MARK 0x10
/* `?` */
#define OCTET_QUERY 0x20
/* `/` `.`, which are not usual behind a slash. */
#define OCTET_SEGMENT 0x40
/* `/`; one bit above OCTET_SEGMENT. */
#define OCTET_SLASH 0x80

#define OCTET_WORD (OCTET_TOKEN | OCTET_UNRESERVED)

const __u8 octet_class[256] = {
    [0x00 ... ' '] = OCTET_END,
    ['!'] = OCTET_TOKEN,
    ['#'] = OCTET_TOKEN | OCTET_MARK,
    ['$'] = OCTET_TOKEN,
    ['%'] = OCTET_TOKEN | OCTET_MARK,
    ['&' ... '\''] = OCTET_TOKEN,
    ['*' ... '+'] = OCTET_TOKEN,
    ['-'] = OCTET_WORD,
    ['.'] = OCTET_WORD | OCTET_SEGMENT,
    ['/'] = OCTET_SEGMENT | OCTET_SLASH,
    ['0' ... '9'] = OCTET_WORD | OCTET_HEX,
    ['?'] = OCTET_QUERY,
    ['A' ... 'F'] = OCTET_WORD | OCTET_HEX,
    ['G' ... 'Z'] = OCTET_WORD,
    ['^'] = OCTET_TOKEN,
    ['_'] = OCTET_WORD,
    ['`'] = OCTET_TOKEN,
    ['a' ... 'f'] = OCTET_WORD | OCTET_HEX,
    ['g' ... 'z'] = OCTET_WORD,
    ['|'] = OCTET_TOKEN,
    ['~'] = OCTET_WORD,
    [0x7f] = OCTET_END,
};
