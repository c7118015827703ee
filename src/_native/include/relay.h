/* Commands to the relay of published ports, over one SOCK_SEQPACKET socket. */
#ifndef PC_RELAY_H
#define PC_RELAY_H

#include "raw.h"

enum pc_relay_kind
{
  PC_RELAY_ADD = 1, /* with one fd: a listening TCP socket, or a bound UDP socket */
  PC_RELAY_DROP,    /* every listener of the id, and its connections */
};

/* Each command is answered before the next is read.  By then an added listener is served and a dropped one closed. */
struct pc_relay_command
{
  u32 kind;
  u32 id;       /* chosen by the caller; several listeners may share it */
  u32 protocol; /* IPPROTO_TCP or IPPROTO_UDP */
  u32 family;   /* of the upstream address: AF_INET (its first four bytes) or AF_INET6 */
  u8 address[16];
  u16 port;     /* in network order */
  u16 patience; /* idle timeout of a UDP session in seconds; 0: 90 */
  u32 scope;    /* of a link-local address */
  u32 serial;   /* repeated in the answer */
};

struct pc_relay_answer
{
  u32 serial;
  i32 error; /* an errno, or 0 */
};

#endif
