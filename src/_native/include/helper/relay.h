/* The relay of published ports (include/relay.h). */
#ifndef PC_HELPER_RELAY_H
#define PC_HELPER_RELAY_H

#include "wire.h"

/* Start a relay that takes its commands from the one fd, a SOCK_SEQPACKET socket. */
void pc_start_relay (const struct pc_fds *fds, struct pc_record *reply);

#endif
