/*
 * resolver.c
 *		Host names to addresses: c-ares on the epoll descriptor of poll.c.
 *
 * libpq's own look-up blocks the process and libcurl's starts a thread, so
 * names are resolved here and handed over as addresses.  Owns the c-ares
 * channel and its sockets.  Used by the connectors in a coordinator.  Touches
 * no connection and no table.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <ares.h>
#include <netdb.h>
#include <sys/time.h>

#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "connector.h"
#include "resolver.h"

#define MAX_ADDRESSES	8		/* of one name; more are left out */
#define QUERY_TIMEOUT	2000	/* ms, of the first try at a name server */
#define QUERY_TRIES		3
#define CHANNEL_AGE		(60 * SAGA_SECOND)	/* then resolv.conf is read anew */

struct SagaResolve
{
	SagaResolved callback;		/* NULL: forgotten */
	void	   *arg;
	bool		starting;		/* saga_resolve_start() has not returned */
	bool		finished;
};

typedef struct ResolverSocket
{
	SagaPollEntry poll;			/* first: handlers cast */
	dlist_node	node;
} ResolverSocket;

static ares_channel channel;
static bool have_channel = false;
static SagaTime channel_made;
static int	active = 0;
static dlist_head sockets = DLIST_STATIC_INIT(sockets);

bool
saga_resolve_is_literal(const char *host)
{
	struct in6_addr addr;

	/* libpq takes "@" for an abstract socket; "%" starts an IPv6 scope */
	return host[0] == '\0' || host[0] == '/' || host[0] == '@' ||
		strchr(host, '%') != NULL ||
		inet_pton(AF_INET, host, &addr) == 1 ||
		inet_pton(AF_INET6, host, &addr) == 1;
}

static void
socket_ready(SagaPollEntry *entry, uint32 events)
{
	int			fd = entry->fd;

	/* this may remove any socket, also this one */
	ares_process_fd(channel,
					events & SAGA_POLL_READ ? fd : ARES_SOCKET_BAD,
					events & SAGA_POLL_WRITE ? fd : ARES_SOCKET_BAD);
}

/* c-ares tells which of its sockets it wants watched, and for what. */
static void
socket_state(void *data, ares_socket_t fd, int readable, int writable)
{
	ResolverSocket *sock = NULL;
	uint32		events = (readable ? SAGA_POLL_READ : 0) |
		(writable ? SAGA_POLL_WRITE : 0);
	dlist_iter	iter;

	dlist_foreach(iter, &sockets)
	{
		ResolverSocket *one = dlist_container(ResolverSocket, node, iter.cur);

		if (one->poll.fd == fd)
			sock = one;
	}
	if (events == 0)
	{
		if (sock)
		{
			saga_poll_remove(&sock->poll);
			dlist_delete(&sock->node);
			pfree(sock);
		}
		return;
	}
	if (sock)
	{
		saga_poll_modify(&sock->poll, events);
		return;
	}
	sock = MemoryContextAllocZero(TopMemoryContext, sizeof(ResolverSocket));
	sock->poll.fd = fd;
	sock->poll.events = events;
	sock->poll.ready = socket_ready;
	dlist_push_tail(&sockets, &sock->node);
	saga_poll_add(&sock->poll);
}

/* NULL or what went wrong. */
static const char *
ensure_channel(void)
{
	static bool library_ready = false;
	struct ares_options options;
	int			rc;

	if (have_channel && active == 0 &&
		GetCurrentTimestamp() - channel_made > CHANNEL_AGE)
		saga_resolver_close();
	if (have_channel)
		return NULL;
	if (!library_ready)
	{
		rc = ares_library_init(ARES_LIB_INIT_ALL);
		if (rc != ARES_SUCCESS)
			return ares_strerror(rc);
		library_ready = true;
	}
	memset(&options, 0, sizeof(options));
	options.timeout = QUERY_TIMEOUT;
	options.tries = QUERY_TRIES;
	options.sock_state_cb = socket_state;
	rc = ares_init_options(&channel, &options,
						   ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES |
						   ARES_OPT_SOCK_STATE_CB);
	if (rc != ARES_SUCCESS)
		return ares_strerror(rc);
	have_channel = true;
	channel_made = GetCurrentTimestamp();
	return NULL;
}

static int
addresses_as_text(struct ares_addrinfo *info,
				  char text[MAX_ADDRESSES][INET6_ADDRSTRLEN])
{
	int			n = 0;

	for (struct ares_addrinfo_node *node = info->nodes;
		 node && n < MAX_ADDRESSES; node = node->ai_next)
	{
		const void *addr;

		if (node->ai_family == AF_INET)
			addr = &((struct sockaddr_in *) node->ai_addr)->sin_addr;
		else if (node->ai_family == AF_INET6)
			addr = &((struct sockaddr_in6 *) node->ai_addr)->sin6_addr;
		else
			continue;
		if (inet_ntop(node->ai_family, addr, text[n], INET6_ADDRSTRLEN))
			n++;
	}
	return n;
}

static void
query_done(void *arg, int status, int timeouts, struct ares_addrinfo *info)
{
	SagaResolve *resolve = arg;
	char		text[MAX_ADDRESSES][INET6_ADDRSTRLEN];
	const char *addresses[MAX_ADDRESSES];
	SagaResolved callback = resolve->callback;
	int			n = 0;

	active--;
	if (status == ARES_SUCCESS && info)
	{
		n = addresses_as_text(info, text);
		for (int i = 0; i < n; i++)
			addresses[i] = text[i];
	}
	if (info)
		ares_freeaddrinfo(info);
	resolve->finished = true;
	resolve->callback = NULL;
	if (callback)
		callback(resolve->arg, n, addresses,
				 n > 0 ? NULL :
				 status == ARES_SUCCESS ? "it has no address" :
				 ares_strerror(status));
	if (!resolve->starting)
		pfree(resolve);
}

SagaResolve *
saga_resolve_start(const char *host, SagaResolved callback, void *arg)
{
	struct ares_addrinfo_hints hints;
	const char *fault = ensure_channel();
	SagaResolve *resolve;

	if (fault)
	{
		callback(arg, 0, NULL, fault);
		return NULL;
	}
	memset(&hints, 0, sizeof(hints));
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	resolve = MemoryContextAllocZero(TopMemoryContext, sizeof(SagaResolve));
	resolve->callback = callback;
	resolve->arg = arg;
	resolve->starting = true;
	active++;
	ares_getaddrinfo(channel, host, NULL, &hints, query_done, resolve);
	resolve->starting = false;
	if (resolve->finished)
	{
		pfree(resolve);
		return NULL;
	}
	return resolve;
}

/* c-ares cannot withdraw one query: its answer will find nobody. */
void
saga_resolve_forget(SagaResolve *resolve)
{
	resolve->callback = NULL;
}

SagaTime
saga_resolver_next_due(SagaTime now)
{
	struct timeval tv;

	if (!have_channel || active == 0 || !ares_timeout(channel, NULL, &tv))
		return SAGA_NEVER;
	return now + tv.tv_sec * SAGA_SECOND + tv.tv_usec;
}

void
saga_resolver_run_timers(void)
{
	if (have_channel && active > 0)
		ares_process_fd(channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
}

/* Queries under way are answered with a fault. */
void
saga_resolver_close(void)
{
	if (!have_channel)
		return;
	have_channel = false;
	ares_destroy(channel);
}
