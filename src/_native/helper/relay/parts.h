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

/* Whose an event is. */
enum pc_end
{
  PC_END_COMMANDS,
  PC_END_LISTENER,
  PC_END_CLIENT,   /* of a TCP flow */
  PC_END_UPSTREAM, /* of a TCP flow */
  PC_END_SESSION,  /* of UDP */
};

/* As sockaddr_in, whose address stands first, or sockaddr_in6. */
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
  u32 generation; /* of its place in the table: an event may be about who stood there before */
  u32 used;
  u16 protocol;
  u16 family;
  u16 patience;
  u16 stalled; /* nobody can be accepted, or sent away, for a while */
  struct pc_address upstream;
};

/* A socket, and the way from it to the other one. */
struct pc_half
{
  int fd;
  int pipe[2]; /* -1 unless something is under way */
  u32 waiting; /* bytes in the pipe */
  u8 readable; /* until it is tried and says no */
  u8 writable;
  u8 ended;    /* nothing more is read from it */
  u8 passed;   /* and the other one knows */
  u8 broken;   /* reset: the other one shall be as well */
};

/* Carry from one socket to the other, for a while. */
void pc_carry (struct pc_half *in, struct pc_half *out);
int pc_can_move (const struct pc_half *in, const struct pc_half *out);
/* It is another's until it is needed again; what is still in it is lost. */
void pc_leave_pipe (struct pc_half *half);

/* A client, and where it thinks the service is. */
struct pc_session_key
{
  struct pc_address client;
  u8 local[16]; /* nulls when that is not known */
  u32 listener;
};

struct pc_session
{
  struct pc_session_key key;
  int fd;
  u32 generation;
  u32 used;
  u32 chain; /* the next of its bucket, or the next that is free */
  u32 older;
  u32 newer;
  i64 heard; /* in which second */
};

/* The session of this client, which may be a new one, or NULL. */
struct pc_session *pc_find_session (const struct pc_listener *listener, const struct pc_session_key *key);
struct pc_session *pc_session_at (u32 place, u32 generation);
/* It has been heard of just now. */
void pc_refresh_session (struct pc_session *session);

/* Serve the commands of this socket until it ends. */
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
/* A nonblocking socket on its way to where a listener's clients want to go, or a negative errno. */
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
/* Give each flow that has something to do its turn; is there more to do at once? */
int pc_tcp_turns (void);
void pc_tcp_drop (u32 id);

/* Have datagrams tell to which address they came: their answers come from there. */
void pc_udp_prepare (const struct pc_listener *listener);
void pc_udp_take (struct pc_listener *listener);
void pc_udp_event (u32 place, u32 generation);
void pc_udp_drop (u32 listener);
int pc_udp_busy (void);
/* End the sessions in which nothing has been heard for long. */
void pc_udp_sweep (void);

#endif
