/* The relay of published ports: what its caller says to it, over one SOCK_SEQPACKET socket. */
#ifndef PC_RELAY_H
#define PC_RELAY_H

#include "raw.h"

enum pc_relay_kind
{
  PC_RELAY_ADD = 1, /* with one fd: a TCP socket that listens, or a UDP socket that is bound */
  PC_RELAY_DROP,    /* every listener of the id, and every connection that came by them */
};

/* Each command is answered before the next is read: what was added is served by then, what was dropped is
   closed. */
struct pc_relay_command
{
  u32 kind;
  u32 id;       /* the caller's own; many listeners may have one */
  u32 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
  u32 family;   /* of the address behind: AF_INET, of which the first four bytes are taken, or AF_INET6 */
  u8 address[16];
  u16 port;     /* in network order */
  u16 patience; /* seconds after which a silent UDP session ends; 0: the common 90 */
  u32 scope;    /* of a link-local address */
  u32 serial;   /* comes back in the answer */
};

struct pc_relay_answer
{
  u32 serial;
  i32 error; /* an errno, or 0 */
};

#endif
