/* Client and server of the networks benchmark: a static program, so that it runs in any root.
 *
 * meet lookup NAME COUNT     asks 127.0.0.11 for an address, and prints nanoseconds of each answer
 * meet serve PORT            accepts and says a byte, until it is killed
 * meet reach PORT NAME...    resolves each name, connects and receives the byte
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int
fail (const char *what)
{
  perror (what);
  return 1;
}

static struct sockaddr_in
place (uint32_t address, int port)
{
  return (struct sockaddr_in){ .sin_family = AF_INET,
                               .sin_port = htons ((uint16_t) port),
                               .sin_addr.s_addr = address };
}

static int
resolver (void)
{
  struct sockaddr_in server = place (inet_addr ("127.0.0.11"), 53);
  struct timeval patience = { .tv_sec = 5 };
  int fd = socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

  if (fd < 0 || setsockopt (fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0
      || connect (fd, (struct sockaddr *) &server, sizeof server) < 0)
    return -1;
  return fd;
}

/* A question for A, one of a single label; answers end in the address. */
static int
ask (int fd, const char *name, uint32_t *address)
{
  static uint16_t number;
  unsigned char packet[512] = { 0 };
  size_t length = strlen (name), size = 12;

  if (length > 63)
    return -1;
  number++;
  memcpy (packet, &number, 2);
  packet[2] = 1;
  packet[5] = 1;
  packet[size++] = (unsigned char) length;
  memcpy (packet + size, name, length);
  size += length + 1;
  memcpy (packet + size, "\0\1\0\1", 4);
  size += 4;
  if (send (fd, packet, size, 0) < 0)
    return -1;
  ssize_t got = recv (fd, packet, sizeof packet, 0);
  if (got < (ssize_t) size + 16 || memcmp (packet, &number, 2) != 0 || (packet[3] & 15) != 0 || packet[7] == 0)
    return -1;
  memcpy (address, packet + size + 12, 4);
  return 0;
}

static int
lookup (const char *name, int count)
{
  int fd = resolver ();
  uint32_t address;

  for (int i = 0; i < count; i++)
    {
      struct timespec begun, done;
      clock_gettime (CLOCK_MONOTONIC, &begun);
      if (ask (fd, name, &address) < 0)
        return fail (name);
      clock_gettime (CLOCK_MONOTONIC, &done);
      printf ("%lld\n", (done.tv_sec - begun.tv_sec) * 1000000000LL + done.tv_nsec - begun.tv_nsec);
    }
  return 0;
}

static int
serve (int port)
{
  struct sockaddr_in here = place (INADDR_ANY, port);
  int fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd < 0 || bind (fd, (struct sockaddr *) &here, sizeof here) < 0 || listen (fd, 64) < 0)
    return fail ("serve");
  if (write (1, "up\n", 3) < 0)
    return fail ("serve");
  for (;;)
    {
      int one = accept (fd, NULL, NULL);
      if (one < 0 || write (one, "x", 1) < 0)
        return fail ("accept");
      close (one);
    }
}

static int
reach (int resolver, const char *name, int port)
{
  uint32_t address;
  char byte;

  if (ask (resolver, name, &address) < 0)
    return fail (name);
  struct sockaddr_in there = place (address, port);
  int fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect (fd, (struct sockaddr *) &there, sizeof there) < 0 || read (fd, &byte, 1) != 1)
    return fail (name);
  close (fd);
  return 0;
}

int
main (int argc, char **argv)
{
  if (argc == 4 && strcmp (argv[1], "lookup") == 0)
    return lookup (argv[2], atoi (argv[3]));
  if (argc == 3 && strcmp (argv[1], "serve") == 0)
    return serve (atoi (argv[2]));
  if (argc < 4 || strcmp (argv[1], "reach") != 0)
    return 2;
  int fd = resolver (), result = 0;
  for (int i = 3; i < argc; i++)
    result |= reach (fd, argv[i], atoi (argv[2]));
  return result;
}
