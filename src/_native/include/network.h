/* PC_REQUEST_NETWORK, caller to launcher: open sockets in a network namespace and set sysctls below /proc/sys/net.
   With a pidfd it is that process's namespace, else the launcher's own. */
#ifndef PC_NETWORK_H
#define PC_NETWORK_H

#include "protocol.h"

struct pc_socket
{
  u16 domain;
  u16 type; /* with flags of socket(2); close-on-exec always */
  u16 protocol;
  u16 backlog; /* 0: it does not listen */
  u16 port;    /* in network order; 0: it is not bound */
  u16 pad;
  u32 address; /* in network order */
};

/* The sockets follow, then `values` bytes of pairs of strings (path, value) and one NUL.  The answer is a record
   PC_RECORD_OPENED for each socket and PC_RECORD_STARTED, or only PC_RECORD_FAILED. */
struct pc_network_request
{
  struct pc_request request;
  u32 sockets;
  u32 values;
};

#endif
