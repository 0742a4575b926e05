/*
 * connector_http.c
 *		Calls to HTTP services: libcurl's multi interface on the epoll
 *		descriptor of poll.c.
 *
 * Owns libcurl's handles and sockets.  Called by connector.c, which decides
 * which call goes when, and by poll.c with events; what stands in a request,
 * and what an answer means, is in http_message.c.  Never blocks: libcurl is
 * told of sockets and timers and never waits itself, and names are resolved by
 * resolver.c, since libcurl would start a thread.  Touches no table.
 *
 * A *pool* is an endpoint with one set of options: its connections are shared
 * with nobody, so none is used under options that it was not opened with.  A
 * link is a place in which one call at a time is made.
 *
 * Outcomes: nothing of the request was sent, transient (or broken, where only
 * the configuration can mend it); the head of a complete refusal came, what
 * its status says; a complete success came, done; all else, unknown.  libcurl
 * would silently send a request again when a connection it had kept breaks
 * without a byte of an answer: it is made not to, for the first one may have
 * had its effect, and that is for the machine to know.
 *
 * libcurl's callbacks must not raise errors: they note what happened.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "connector_http.h"
#include "resolver.h"

#define IDLE_FOR			(60 * SAGA_SECOND)
#define CONNECTION_IDLE		4L	/* s; many services close them after 5 */
#define CONNECTION_LIFE		300L	/* s; then the name may mean another host */
#define ADDRESSES_LIFE		(30 * SAGA_SECOND)
#define MAX_HEAD			(256 * 1024)	/* bytes of all headers together */
#define MAX_REFUSAL			(64 * 1024) /* of the body of one */
#define KEEP_BUFFER			(64 * 1024) /* of memory between calls */
#define MORE_SOCKETS		20000

/* Addresses by what calling them could do. */
typedef enum Reach
{
	REACH_PUBLIC,
	REACH_LOOPBACK,
	REACH_PRIVATE,
	REACH_SPECIAL,				/* link-local, multicast, reserved */
} Reach;

typedef struct HttpPool
{
	SagaEndpoint *endpoint;
	uint64		fingerprint;	/* of the options it is made for */
	MemoryContext context;		/* holds this */
	int			refs;			/* its links, and who works on it */
	CURLM	   *multi;
	SagaTimer	timer;			/* as libcurl wants it */
	SagaParticipantStat *stat;
	dlist_head	sockets;		/* HttpSocket */
	char	   *name;			/* of the server */
	char	   *host;
	char	   *port;
	char	   *cafile;			/* or NULL: the system's */
	bool		allow_private;
	bool		literal;		/* the host is an address */
	int			connect_timeout_ms;
	int			max_response;

	/* of the host */
	struct curl_slist *addresses;	/* for CURLOPT_RESOLVE */
	SagaTime	resolved_at;	/* 0: never yet */
	SagaResolve *resolve;		/* under way */
	bool		resolving;
	dlist_head	waiting;		/* links whose calls wait for it */
} HttpPool;

typedef struct HttpSocket
{
	SagaPollEntry poll;			/* first */
	dlist_node	node;
	HttpPool   *pool;
} HttpSocket;

typedef struct HttpLink
{
	SagaLink	link;			/* first */
	HttpPool   *pool;
	MemoryContext context;		/* holds this */
	SagaTimer	timer;
	SagaTime	idle_since;
	CURL	   *easy;
	dlist_node	waiting_node;
	bool		waiting;		/* for the host's addresses */
	bool		running;		/* in the hands of libcurl */
	SagaHttpRequest request;

	/* what libcurl's callbacks noted */
	int			begun;			/* times a connection was ready for it */
	bool		resent;			/* libcurl was about to send it again */
	char		refused_address[INET6_ADDRSTRLEN];
	bool		no_descriptor;
	size_t		head;			/* bytes of headers */
	bool		head_complete;
	bool		head_too_large;
	bool		too_large;
	char		status_line[128];
	int			status;
	char	   *body;			/* malloc'ed: errors cannot be raised there */
	size_t		size;
	size_t		maxsize;
	char		error[CURL_ERROR_SIZE];
} HttpLink;

static void start_transfer(HttpLink *link);
static void drain(HttpPool *pool);

/* ---- addresses ---- */

static Reach
reach_of_ipv4(uint32 a)
{
	if ((a >> 24) == 127)
		return REACH_LOOPBACK;
	if ((a >> 24) == 10 || (a >> 20) == ((172 << 4) | 1) ||
		(a >> 16) == ((192 << 8) | 168) ||
		(a >> 22) == ((100 << 2) | 1))	/* 100.64/10: of carriers and clouds */
		return REACH_PRIVATE;
	if ((a >> 24) == 0 || (a >> 16) == ((169 << 8) | 254) ||
		(a >> 8) == ((192 << 16)) || (a >> 17) == (((198 << 8) | 18) >> 1) ||
		(a >> 28) >= 14)
		return REACH_SPECIAL;
	return REACH_PUBLIC;
}

static uint32
ipv4_at(const uint8 *p)
{
	return ((uint32) p[0] << 24) | ((uint32) p[1] << 16) |
		((uint32) p[2] << 8) | p[3];
}

static Reach
reach_of_ipv6(const uint8 *a)
{
	static const uint8 zeros[16] = {0};
	static const uint8 nat64[12] = {0, 0x64, 0xff, 0x9b};

	if (memcmp(a, zeros, 15) == 0)
		return a[15] == 1 ? REACH_LOOPBACK : REACH_SPECIAL;
	/* an IPv4 address inside: mapped, compatible, NAT64, 6to4 */
	if (memcmp(a, zeros, 10) == 0 && a[10] == 0xff && a[11] == 0xff)
		return reach_of_ipv4(ipv4_at(a + 12));
	if (memcmp(a, zeros, 12) == 0 || memcmp(a, nat64, 12) == 0)
		return Max(reach_of_ipv4(ipv4_at(a + 12)), REACH_PRIVATE);
	if (a[0] == 0x20 && a[1] == 0x02)
		return reach_of_ipv4(ipv4_at(a + 2));
	if ((a[0] & 0xfe) == 0xfc)
		return REACH_PRIVATE;
	if ((a[0] & 0xe0) != 0x20 || (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0 && a[3] == 0))
		return REACH_SPECIAL;
	return REACH_PUBLIC;
}

/*
 * May this pool open a connection there?  Whoever made the server may have
 * meant an address that he wrote himself; a name can be made to mean anything
 * by others.
 */
static bool
may_call(const HttpPool *pool, const struct sockaddr *addr)
{
	Reach		reach;

	if (pool->allow_private)
		return true;
	if (addr->sa_family == AF_INET)
		reach = reach_of_ipv4(ntohl(((const struct sockaddr_in *) addr)->sin_addr.s_addr));
	else
		reach = reach_of_ipv6(((const struct sockaddr_in6 *) addr)->sin6_addr.s6_addr);
	switch (reach)
	{
		case REACH_PUBLIC:
			return true;
		case REACH_LOOPBACK:
			return pool->literal || pg_strcasecmp(pool->host, "localhost") == 0;
		case REACH_PRIVATE:
			return pool->literal;
		default:
			return false;
	}
}

/* ---- sockets ---- */

/*
 * Descriptors: the server budgets max_files_per_process for a process.  What
 * the operating system allows beyond that is for our sockets; where that is
 * not enough they come out of the budget.
 */
static int	own_sockets = 0;
static int	max_own_sockets = 0;
static int	budgeted_sockets = 0;

static void
make_room(int wanted)
{
	static bool raised = false;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	if (!raised && max_own_sockets < wanted + own_sockets &&
		limit.rlim_cur != RLIM_INFINITY)
	{
		rlim_t		most = (rlim_t) max_files_per_process + MORE_SOCKETS;

		if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < most)
			most = limit.rlim_max;
		if (most > limit.rlim_cur)
		{
			limit.rlim_cur = most;
			(void) setrlimit(RLIMIT_NOFILE, &limit);
			(void) getrlimit(RLIMIT_NOFILE, &limit);
		}
		raised = true;
	}
	max_own_sockets = limit.rlim_cur == RLIM_INFINITY ? MORE_SOCKETS :
		(int) Min(limit.rlim_cur, (rlim_t) max_files_per_process + MORE_SOCKETS) -
		max_files_per_process - 64;
}

static bool
reserve_socket(void)
{
	if (own_sockets < max_own_sockets)
		own_sockets++;
	else if (AcquireExternalFD())
		budgeted_sockets++;
	else
		return false;
	return true;
}

static void
release_socket(void)
{
	if (budgeted_sockets > 0)
	{
		budgeted_sockets--;
		ReleaseExternalFD();
	}
	else
		own_sockets--;
}

static curl_socket_t
open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
	HttpLink   *link = arg;
	HttpPool   *pool = link->pool;
	int			fd;

	if (purpose != CURLSOCKTYPE_IPCXN ||
		(addr->family != AF_INET && addr->family != AF_INET6))
		return CURL_SOCKET_BAD;
	if (!may_call(pool, &addr->addr))
	{
		const void *bytes = addr->family == AF_INET ?
			(const void *) &((struct sockaddr_in *) &addr->addr)->sin_addr :
			(const void *) &((struct sockaddr_in6 *) &addr->addr)->sin6_addr;

		(void) inet_ntop(addr->family, bytes, link->refused_address,
						 sizeof(link->refused_address));
		return CURL_SOCKET_BAD;
	}
	if (!reserve_socket())
	{
		link->no_descriptor = true;
		return CURL_SOCKET_BAD;
	}
	fd = socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol);
	if (fd < 0)
	{
		release_socket();
		link->no_descriptor = true;
		return CURL_SOCKET_BAD;
	}
	pg_atomic_fetch_add_u64(&pool->stat->connects, 1);
	pg_atomic_fetch_add_u32(&pool->stat->connections, 1);
	return fd;
}

static int
close_socket(void *arg, curl_socket_t fd)
{
	HttpPool   *pool = arg;

	pg_atomic_fetch_sub_u32(&pool->stat->connections, 1);
	release_socket();
	return close(fd);
}

static void
forget_socket(HttpSocket *sock)
{
	saga_poll_remove(&sock->poll);
	dlist_delete(&sock->node);
	free(sock);
}

static void
socket_ready(SagaPollEntry *entry, uint32 events)
{
	HttpPool   *pool = ((HttpSocket *) entry)->pool;
	int			running;

	pool->refs++;
	(void) curl_multi_socket_action(pool->multi, entry->fd,
									(events & SAGA_POLL_READ ? CURL_CSELECT_IN : 0) |
									(events & SAGA_POLL_WRITE ? CURL_CSELECT_OUT : 0),
									&running);
	drain(pool);
}

/* libcurl tells which of its sockets it wants watched, and for what. */
static int
socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg,
			   void *socket_arg)
{
	HttpPool   *pool = arg;
	HttpSocket *sock = socket_arg;
	uint32		events = (what & CURL_POLL_IN ? SAGA_POLL_READ : 0) |
		(what & CURL_POLL_OUT ? SAGA_POLL_WRITE : 0);

	if (what == CURL_POLL_REMOVE)
	{
		if (sock)
			forget_socket(sock);
		return 0;
	}
	/* what is not watched ends with its call's time-out */
	if (sock)
	{
		(void) saga_poll_try_modify(&sock->poll, events);
		return 0;
	}
	sock = calloc(1, sizeof(HttpSocket));
	if (sock == NULL)
		return 0;
	sock->pool = pool;
	sock->poll.fd = fd;
	sock->poll.events = events;
	sock->poll.ready = socket_ready;
	dlist_push_tail(&pool->sockets, &sock->node);
	(void) saga_poll_try_add(&sock->poll);
	(void) curl_multi_assign(pool->multi, fd, sock);
	return 0;
}

static void
timer_due(SagaTimer *timer)
{
	HttpPool   *pool = SAGA_CONTAINER(HttpPool, timer, timer);
	int			running;

	pool->refs++;
	(void) curl_multi_socket_action(pool->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	drain(pool);
}

static int
timer_changed(CURLM *multi, long timeout_ms, void *arg)
{
	HttpPool   *pool = arg;

	if (timeout_ms < 0)
		saga_timer_clear(&pool->timer);
	else
		saga_timer_set(&pool->timer,
					   GetCurrentTimestamp() + timeout_ms * INT64CONST(1000),
					   timer_due);
	return 0;
}

/* ---- what comes in ---- */

/* A connection is ready, and the request is about to be sent over it. */
static int
about_to_send(void *arg, char *remote_ip, char *local_ip, int remote_port,
			  int local_port)
{
	HttpLink   *link = arg;

	if (link->begun++ > 0 && !link->request.safe)
	{
		link->resent = true;
		return CURL_PREREQFUNC_ABORT;
	}
	if (link->link.call)
		link->link.call->in_doubt = true;
	return CURL_PREREQFUNC_OK;
}

static size_t
take_header(char *line, size_t size, size_t n, void *arg)
{
	HttpLink   *link = arg;
	size_t		length = size * n;

	link->head += length;
	if (link->head > MAX_HEAD)
	{
		link->head_too_large = true;
		return 0;
	}
	if (length > 5 && strncmp(line, "HTTP/", 5) == 0)
	{
		size_t		used = Min(length, sizeof(link->status_line) - 1);
		const char *code;

		memcpy(link->status_line, line, used);
		link->status_line[used] = '\0';
		code = strchr(link->status_line, ' ');
		link->status = code ? atoi(code) : 0;
		link->head_complete = false;
	}
	else if (line[0] == '\r' || line[0] == '\n')
		link->head_complete = link->status >= 200 && link->status < 1000;
	return length;
}

static size_t
take_body(char *data, size_t size, size_t n, void *arg)
{
	HttpLink   *link = arg;
	size_t		length = size * n;
	size_t		limit = link->pool->max_response;

	if (link->status < 200 || link->status > 299)
		limit = Min(limit, MAX_REFUSAL);
	if (length > limit - link->size)
	{
		link->too_large = true;
		return 0;
	}
	if (link->size + length + 1 > link->maxsize)
	{
		size_t		wanted = Max(link->maxsize * 2, link->size + length + 1);
		char	   *larger;

		wanted = Max(wanted, 1024);
		larger = realloc(link->body, wanted);
		if (larger == NULL)
			return 0;
		link->body = larger;
		link->maxsize = wanted;
	}
	memcpy(link->body + link->size, data, length);
	link->size += length;
	link->body[link->size] = '\0';
	return length;
}

/* ---- the end of a transfer ---- */

static void
stop_transfer(HttpLink *link)
{
	if (link->waiting)
		dlist_delete(&link->waiting_node);
	link->waiting = false;
	if (link->running)
		(void) curl_multi_remove_handle(link->pool->multi, link->easy);
	link->running = false;
	curl_slist_free_all(link->request.headers);
	memset(&link->request, 0, sizeof(link->request));
	if (link->maxsize > KEEP_BUFFER)
	{
		free(link->body);
		link->body = NULL;
		link->maxsize = 0;
	}
}

/* The link's call has its answer: the link is free again. */
static void
call_done(HttpLink *link)
{
	SagaEndpoint *endpoint = link->link.endpoint;
	SagaConnCall *call = link->link.call;

	stop_transfer(link);
	link->link.call = NULL;
	link->idle_since = GetCurrentTimestamp();
	saga_endpoint_link_free(&link->link);
	saga_call_finish(call);
	saga_endpoint_pump(endpoint);
}

/* Nothing of the request was sent: why? */
static void
not_sent_fault(HttpLink *link, CURLcode rc, SagaFault *fault)
{
	const char *server = link->pool->name;
	const char *why = link->error[0] ? link->error : curl_easy_strerror(rc);
	char		message[256];

	snprintf(message, sizeof(message), "could not connect to server \"%s\"", server);
	if (link->refused_address[0])
	{
		snprintf(message, sizeof(message), "server \"%s\" may not call address %s",
				 server, link->refused_address);
		saga_fault_set(fault, SAGA_ANSWER_BROKEN, "42501", message,
					   "Its host leads to an address that is not public.",
					   "If that is meant, set the server's option allow_private 'true'.");
	}
	else if (link->no_descriptor)
		saga_fault_set(fault, SAGA_ANSWER_TRANSIENT, "53000",
					   "too many files and sockets are open in this process",
					   NULL, "Raise the operating system's limit of open files, or max_files_per_process.");
	else if (rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE ||
			 rc == CURLE_SSL_ISSUER_ERROR || rc == CURLE_SSL_CERTPROBLEM)
	{
		snprintf(message, sizeof(message), "server \"%s\" could not prove who it is", server);
		saga_fault_set(fault, SAGA_ANSWER_BROKEN, "28000", message, why,
					   "Look at its certificate, and at the server's option sslrootcert.");
	}
	else if (rc == CURLE_OUT_OF_MEMORY)
		saga_fault_set(fault, SAGA_ANSWER_TRANSIENT, "53200", "out of memory",
					   NULL, NULL);
	else
		saga_fault_set(fault, SAGA_ANSWER_TRANSIENT, "08001", message, why, NULL);
}

/* It may have been done: why is there no answer? */
static void
unknown_fault(HttpLink *link, CURLcode rc, SagaFault *fault)
{
	const char *why = link->error[0] ? link->error : curl_easy_strerror(rc);
	char		message[256];

	snprintf(message, sizeof(message),
			 "connection to server \"%s\" was lost before its answer",
			 link->pool->name);
	if (link->too_large || link->head_too_large)
	{
		snprintf(message, sizeof(message), "the answer of server \"%s\" is too large",
				 link->pool->name);
		if (link->too_large)
			saga_fault_set(fault, SAGA_ANSWER_UNKNOWN, "54000", message, NULL,
						   "Raise the server's option max_response_size, and saga.max_payload.");
		else
			saga_fault_set(fault, SAGA_ANSWER_UNKNOWN, "54000", message,
						   "It has too many headers.", NULL);
		return;
	}
	saga_fault_set(fault, SAGA_ANSWER_UNKNOWN, "08006", message,
				   link->resent ? "A connection that was kept open was closed." : why,
				   NULL);
}

static void
take_answer(HttpLink *link)
{
	SagaConnCall *call = link->link.call;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	SagaHttpResponse response;
	char	   *text = NULL;
	curl_off_t	seconds = 0;

	memset(&response, 0, sizeof(response));
	response.status = link->status;
	strlcpy(response.status_line, link->status_line, sizeof(response.status_line));
	response.body = link->size > 0 ? link->body : NULL;
	response.size = link->size;
	if (curl_easy_getinfo(link->easy, CURLINFO_CONTENT_TYPE, &text) == CURLE_OK)
		response.content_type = text;
	text = NULL;
	if (link->status >= 300 && link->status < 400 &&
		curl_easy_getinfo(link->easy, CURLINFO_REDIRECT_URL, &text) == CURLE_OK)
		response.location = text;
	if (curl_easy_getinfo(link->easy, CURLINFO_RETRY_AFTER, &seconds) == CURLE_OK &&
		seconds > 0)
		response.retry_after = Min(seconds, 10 * 366 * 86400) * SAGA_SECOND;
	saga_http_answer(call, &link->request, &response);
	MemoryContextSwitchTo(old);
}

static void
transfer_done(HttpLink *link, CURLcode rc)
{
	SagaEndpoint *endpoint = link->link.endpoint;
	SagaConnCall *call = link->link.call;
	bool		success = link->status >= 200 && link->status <= 299;
	long		sent = 0;
	SagaFault	fault;

	(void) curl_easy_getinfo(link->easy, CURLINFO_REQUEST_SIZE, &sent);
	if (link->head_complete && (rc == CURLE_OK || !success))
	{
		take_answer(link);
		saga_endpoint_works(endpoint);
		call_done(link);
		return;
	}
	if (link->begun == 0 || sent == 0)
	{
		not_sent_fault(link, rc, &fault);
		saga_endpoint_failed(endpoint, &fault);
	}
	else
	{
		/* the way there is good; it is the request that came to nothing */
		unknown_fault(link, rc, &fault);
		saga_endpoint_works(endpoint);
	}
	saga_call_fault(call, &fault);
	call_done(link);
}

static void
release_pool(HttpPool *pool)
{
	if (--pool->refs > 0)
		return;
	if (pool->endpoint->pool == pool)
		pool->endpoint->pool = NULL;
	if (pool->resolve)
		saga_resolve_forget(pool->resolve);
	curl_multi_cleanup(pool->multi);
	while (!dlist_is_empty(&pool->sockets))
		forget_socket(dlist_head_element(HttpSocket, node, &pool->sockets));
	saga_timer_clear(&pool->timer);
	curl_slist_free_all(pool->addresses);
	MemoryContextDelete(pool->context);
}

/* Take what libcurl has finished; the caller's hold on the pool ends here. */
static void
drain(HttpPool *pool)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(pool->multi, &left)) != NULL)
	{
		CURLcode	rc = message->data.result;
		char	   *link = NULL;

		if (message->msg == CURLMSG_DONE &&
			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &link) == CURLE_OK)
			transfer_done((HttpLink *) link, rc);
	}
	release_pool(pool);
}

/* ---- sending ---- */

static void
set_options(HttpLink *link)
{
	HttpPool   *pool = link->pool;
	CURL	   *easy = link->easy;
	const SagaHttpRequest *request = &link->request;

	curl_easy_reset(easy);
	curl_easy_setopt(easy, CURLOPT_PRIVATE, (char *) link);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, link->error);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);

	/* where to: what the server's options say, and nowhere else */
	curl_easy_setopt(easy, CURLOPT_URL, request->url);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_RESOLVE, pool->addresses);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, link);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, pool);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (pool->cafile)
		curl_easy_setopt(easy, CURLOPT_CAINFO, pool->cafile);

	/* how */
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT,
					 strncmp(request->url, "https:", 6) == 0 ? 1L : 0L);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) pool->connect_timeout_ms);
	curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN, CONNECTION_IDLE);
	curl_easy_setopt(easy, CURLOPT_MAXLIFETIME_CONN, CONNECTION_LIFE);
	if (link->link.call->request.at_most_once)
	{
		curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);
		curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
	}
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, about_to_send);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, link);

	/* what */
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, request->headers);
	if (strcmp(request->method, "HEAD") == 0)
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	else if (request->body || request->method[0] == 'P')
	{
		curl_easy_setopt(easy, CURLOPT_POST, 1L);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
						 (curl_off_t) (request->body ? strlen(request->body) : 0));
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request->body ? request->body : "");
	}
	curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);

	/* what comes back */
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, link);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, link);
}

static void
start_transfer(HttpLink *link)
{
	SagaFault	fault;

	set_options(link);
	if (curl_multi_add_handle(link->pool->multi, link->easy) == CURLM_OK)
	{
		link->running = true;
		return;
	}
	saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "53200",
				   "could not begin a request", NULL, NULL);
	saga_call_fault(link->link.call, &fault);
	call_done(link);
}

/* ---- names ---- */

static void
keep_addresses(HttpPool *pool, int n, const char *const *addresses)
{
	StringInfoData entry;
	struct curl_slist *list;

	initStringInfo(&entry);
	appendStringInfo(&entry, "%s:%s:", pool->host, pool->port);
	for (int i = 0; i < n; i++)
		appendStringInfo(&entry, strchr(addresses[i], ':') ? "%s[%s]" : "%s%s",
						 i > 0 ? "," : "", addresses[i]);
	list = curl_slist_append(NULL, entry.data);
	pfree(entry.data);
	if (list == NULL)
		return;
	curl_slist_free_all(pool->addresses);
	pool->addresses = list;
	pool->resolved_at = GetCurrentTimestamp();
}

static void
name_resolved(void *arg, int n, const char *const *addresses,
			  const char *fault_text)
{
	HttpPool   *pool = arg;
	SagaFault	fault;
	char		message[256];

	pool->resolve = NULL;
	pool->resolving = false;
	pool->refs++;
	if (n > 0)
		keep_addresses(pool, n, addresses);
	else
	{
		snprintf(message, sizeof(message),
				 "could not resolve host \"%s\" of server \"%s\": %s", pool->host,
				 pool->name, fault_text ? fault_text : "it has no address");
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08001", message, NULL, NULL);
		if (pool->addresses == NULL)
			saga_endpoint_failed(pool->endpoint, &fault);
	}
	while (!dlist_is_empty(&pool->waiting))
	{
		HttpLink   *link = dlist_head_element(HttpLink, waiting_node, &pool->waiting);

		dlist_delete(&link->waiting_node);
		link->waiting = false;
		/* better the addresses of half a minute ago than none */
		if (pool->addresses)
			start_transfer(link);
		else
		{
			saga_call_fault(link->link.call, &fault);
			call_done(link);
		}
	}
	release_pool(pool);
}

static void
send_call(SagaLink *base, SagaConnCall *call)
{
	HttpLink   *link = (HttpLink *) base;
	HttpPool   *pool = link->pool;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	bool		good = saga_http_request(call, &link->request);

	MemoryContextSwitchTo(old);
	link->begun = 0;
	link->resent = false;
	link->refused_address[0] = '\0';
	link->no_descriptor = false;
	link->head = 0;
	link->head_complete = false;
	link->head_too_large = false;
	link->too_large = false;
	link->status_line[0] = '\0';
	link->status = 0;
	link->size = 0;
	link->error[0] = '\0';
	if (!good)
		call_done(link);
	else if (pool->literal ||
			 (pool->addresses &&
			  pool->resolved_at + ADDRESSES_LIFE > GetCurrentTimestamp()))
		start_transfer(link);
	else
	{
		link->waiting = true;
		dlist_push_tail(&pool->waiting, &link->waiting_node);
		if (!pool->resolving)
		{
			SagaResolve *resolve;

			/* the answer may come, and end all this, before it returns */
			pool->resolving = true;
			pool->refs++;
			resolve = saga_resolve_start(pool->host, name_resolved, pool);
			if (pool->resolving)
				pool->resolve = resolve;
			release_pool(pool);
		}
	}
}

/* ---- pools and links ---- */

/* NULL: out of memory, or libcurl cannot be used. */
static HttpPool *
make_pool(SagaEndpoint *endpoint)
{
	const SagaServer *server = endpoint->server;
	const char *cafile = saga_server_value(server, "sslrootcert");
	MemoryContext context = AllocSetContextCreate(saga_connector_context(),
												  "saga HTTP pool",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	HttpPool   *pool = palloc0(sizeof(HttpPool));
	struct in6_addr unused;

	pool->endpoint = endpoint;
	pool->fingerprint = server->fingerprint;
	pool->context = context;
	pool->stat = endpoint->stat;
	pool->name = pstrdup(server->name);
	pool->host = pstrdup(saga_server_value(server, "host"));
	pool->port = pstrdup(saga_server_value(server, "port"));
	pool->cafile = cafile ? pstrdup(cafile) : NULL;
	pool->allow_private = server->allow_private;
	pool->literal = inet_pton(AF_INET, pool->host, &unused) == 1 ||
		inet_pton(AF_INET6, pool->host, &unused) == 1;
	pool->connect_timeout_ms = server->connect_timeout_ms;
	pool->max_response = saga_connector_max_result();
	if (server->max_response > 0)
		pool->max_response = Min(pool->max_response, server->max_response);
	dlist_init(&pool->sockets);
	dlist_init(&pool->waiting);
	MemoryContextSwitchTo(old);

	make_room(server->pool_size);
	pool->multi = curl_multi_init();
	if (pool->multi == NULL)
	{
		MemoryContextDelete(context);
		return NULL;
	}
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETFUNCTION, socket_changed);
	curl_multi_setopt(pool->multi, CURLMOPT_SOCKETDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERFUNCTION, timer_changed);
	curl_multi_setopt(pool->multi, CURLMOPT_TIMERDATA, pool);
	curl_multi_setopt(pool->multi, CURLMOPT_MAXCONNECTS, (long) server->pool_size);
	return pool;
}

static HttpPool *
pool_for(SagaEndpoint *endpoint)
{
	static bool library_ready = false;
	HttpPool   *pool = endpoint->pool;

	if (pool != NULL && pool->fingerprint == endpoint->server->fingerprint)
		return pool;
	if (!library_ready && curl_global_init(CURL_GLOBAL_ALL) != CURLE_OK)
		return NULL;
	library_ready = true;
	/* the old one goes with the last of its links */
	endpoint->pool = make_pool(endpoint);
	return endpoint->pool;
}

static void
check_idle(SagaTimer *timer)
{
	HttpLink   *link = SAGA_CONTAINER(HttpLink, timer, timer);
	SagaTime	now = GetCurrentTimestamp();

	if (!link->link.idle)
		saga_timer_set(timer, now + IDLE_FOR, check_idle);
	else if (link->idle_since + IDLE_FOR > now)
		saga_timer_set(timer, link->idle_since + IDLE_FOR, check_idle);
	else
		saga_endpoint_link_gone(&link->link, NULL);
}

static void
open_link(SagaEndpoint *endpoint)
{
	HttpPool   *pool = pool_for(endpoint);
	CURL	   *easy = pool ? curl_easy_init() : NULL;
	MemoryContext context;
	HttpLink   *link;
	SagaFault	fault;

	context = AllocSetContextCreate(saga_connector_context(), "saga HTTP link",
									ALLOCSET_SMALL_SIZES);
	link = MemoryContextAllocZero(context, sizeof(HttpLink));
	link->context = context;
	link->pool = pool;
	link->easy = easy;
	link->idle_since = GetCurrentTimestamp();
	link->link.fingerprint = endpoint->server->fingerprint;
	if (pool)
		pool->refs++;
	saga_endpoint_link_add(endpoint, &link->link);
	if (easy == NULL)
	{
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "53200",
					   "could not set up libcurl", NULL, NULL);
		saga_endpoint_link_gone(&link->link, &fault);
		return;
	}
	saga_timer_set(&link->timer, link->idle_since + IDLE_FOR, check_idle);
	saga_endpoint_link_free(&link->link);
}

static void
close_link(SagaLink *base)
{
	HttpLink   *link = (HttpLink *) base;

	saga_timer_clear(&link->timer);
	stop_transfer(link);
	if (link->easy)
		curl_easy_cleanup(link->easy);
	free(link->body);
	if (link->pool)
		release_pool(link->pool);
	MemoryContextDelete(link->context);
}

/* A service has no barrier that could be asked, and nothing to be cleared. */
static bool
answer_here(SagaConnCall *call)
{
	switch (call->request.mode)
	{
		case SAGA_REQUEST_CLAIM:
			saga_call_error(call, SAGA_ANSWER_BROKEN, "0A000",
							"an HTTP service cannot be asked whether a call was made",
							NULL, "Find out there, then use force => true.");
			return true;
		case SAGA_REQUEST_PURGE:
			call->answer.kind = SAGA_ANSWER_DONE;
			return true;
		default:
			return false;
	}
}

const SagaConnector saga_http_connector = {
	.link_is_connection = false,
	.grace = 0,
	.open = open_link,
	.send = send_call,
	.close = close_link,
	.answer_here = answer_here,
};
