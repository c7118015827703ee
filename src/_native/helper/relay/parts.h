/* Internal interface of the relay. */
#ifndef PC_PARTS_H
#define PC_PARTS_H

#include "relay.h"
#include "wire.h"

#include <asm/socket.h>
#include <linux/eventpoll.h>
#include <linux/in.h>

#define PC_LISTENERS_MOST 4096u
#define PC_FLOWS_MOST 4096u
#define PC_SESSIONS_MOST 1024u

#define SOCK_FLAGS_ (SOCK_NONBLOCK_ | SOCK_CLOEXEC_)

/* The kind of socket that an event belongs to. */
enum pc_end
{
  PC_END_COMMANDS,
  PC_END_LISTENER,
  PC_END_CLIENT,   /* of a TCP flow */
  PC_END_UPSTREAM, /* of a TCP flow */
  PC_END_SESSION,  /* of UDP */
};

/* struct sockaddr_in, whose address is `first`, or struct sockaddr_in6. */
struct pc_address
{
  u16 family;
  u16 port;
  u32 first;
  u8 address[16];
  u32 scope;
};

struct pc_listener
{
  int fd;
  u32 id;
  u32 generation; /* of its place in the table: an event may be for an earlier listener in the same place */
  u32 used;
  u16 protocol;
  u16 family;
  u16 patience;
  u16 stalled; /* ignored for a while, because no fd is free to accept with */
  struct pc_address upstream;
};

/* A socket, and the direction from it to the other socket of the flow. */
struct pc_half
{
  int fd;
  int pipe[2]; /* -1 while no bytes are in transit */
  u32 waiting; /* bytes in the pipe */
  u8 readable; /* until a read returns EAGAIN */
  u8 writable;
  u8 ended;  /* end of the stream, or an error */
  u8 passed; /* and the end was passed on to the other socket */
  u8 broken; /* reset, which is passed on as well */
};

/* Move bytes from one socket to the other, for a bounded number of rounds. */
void pc_carry (struct pc_half *in, struct pc_half *out);
int pc_can_move (const struct pc_half *in, const struct pc_half *out);
/* Give the pipe back to the pool; bytes that are still in it are lost. */
void pc_leave_pipe (struct pc_half *half);

/* A client, and the address to which it sent. */
struct pc_session_key
{
  struct pc_address client;
  u8 local[16]; /* zeros if unknown */
  u32 listener;
};

struct pc_session
{
  struct pc_session_key key;
  int fd;
  u32 generation;
  u32 used;
  u32 chain; /* next session in the bucket, or next free place */
  u32 older;
  u32 newer;
  i64 last_seen; /* in seconds */
};

/* Return the session of a client, a new one if there is none, or NULL. */
struct pc_session *pc_find_session (const struct pc_listener *listener, const struct pc_session_key *key);
struct pc_session *pc_session_at (u32 place, u32 generation);
/* Note that the session was used just now. */
void pc_refresh_session (struct pc_session *session);

/* Serve the commands of this socket until it closes. */
_Noreturn void pc_relay (int socket);
/* Register with epoll, until the fd is closed; 0 or a negative errno. */
int pc_watch (int fd, enum pc_end end, u32 place, u32 generation, u32 events);
/* Make the epoll instance; its fd or a negative errno. */
int pc_start_watching (void);
struct pc_listener *pc_listener_at (u32 place);
/* The next listener in use after this one, the first after NULL, or NULL. */
struct pc_listener *pc_next_listener (const struct pc_listener *after);
/* An unused place, or NULL when all are in use. */
struct pc_listener *pc_free_listener (void);
u32 pc_place_of (const struct pc_listener *listener);
/* Start to connect a non-blocking socket to the upstream of a listener.  Its fd or a negative errno. */
int pc_dial (const struct pc_listener *listener, int type);
int pc_socket_option (int fd, int name);
/* Ignore a listener for a while: it has a client, but no fd is free to accept it, so epoll would report it again at
   once. */
void pc_stall (struct pc_listener *listener);
int pc_is_stalled (void);
int pc_stall_is_over (void);
void pc_end_stall (void);
/* Close a listener; the sessions of a UDP one are dropped before. */
void pc_close_listener (struct pc_listener *listener);
i64 pc_seconds (void);

void pc_tcp_accept (struct pc_listener *listener);
void pc_tcp_event (enum pc_end end, u32 place, u32 generation, u32 events);
/* Give each ready flow one turn.  Returns 1 if some are ready again. */
int pc_tcp_turns (void);
void pc_tcp_drop (u32 id);

/* Receive the destination address with each datagram: the answer is sent from that address. */
void pc_udp_prepare (const struct pc_listener *listener);
void pc_udp_take (struct pc_listener *listener);
void pc_udp_event (u32 place, u32 generation);
void pc_udp_drop (u32 listener);
int pc_udp_busy (void);
/* End the sessions that were idle for longer than their timeout. */
void pc_udp_sweep (void);

#endif
