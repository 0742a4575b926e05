/*
 * connector_http.c
 *		Calls to HTTP services: libcurl's multi interface on the epoll
 *		descriptor of poll.c.
 *
 * Owns libcurl's handles and sockets.  Called by connector.c, which decides
 * which call goes when, and by poll.c with events; what stands in a request,
 * and what an answer means, is in http_message.c.  Never blocks: libcurl is
 * told of sockets and timers and never waits itself, and names are resolved by
 * http_site.c, since libcurl would start a thread.  Touches no table.
 *
 * A *site* is an endpoint with one set of options: its connections are shared
 * with nobody, so none is used under options that it was not opened with.  A
 * link is a place in which one call at a time is made.  Links of a site share
 * connections in *pools* of a few, because libcurl looks through all that it
 * keeps for each request.
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
#include <sys/socket.h>
#include <unistd.h>

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "http_site.h"

#define IDLE_FOR			(60 * SAGA_SECOND)
#define CONNECTION_IDLE		4L	/* s; many services close them after 5 */
#define CONNECTION_LIFE		300L	/* s; then the name may mean another host */
#define MAX_HEAD			(256 * 1024)	/* bytes of all headers together */
#define MAX_REFUSAL			(64 * 1024) /* of the body of one */
#define KEEP_BUFFER			(64 * 1024) /* of memory between calls */
#define POOL_LINKS			4
#define POOL_LINKS_TLS		100 /* streams that one HTTP/2 connection may have */

typedef struct HttpPool
{
	dlist_node	node;			/* in site->pools */
	SagaHttpSite *site;
	int			nlinks;
	int			refs;			/* its links, and who works on it */
	CURLM	   *multi;
	SagaTimer	timer;			/* as libcurl wants it */
	dlist_head	sockets;		/* HttpSocket */
} HttpPool;

typedef struct HttpSocket
{
	SagaPollEntry poll;			/* first */
	dlist_node	node;
	HttpPool   *pool;
	bool		idle;			/* of a connection that is kept */
} HttpSocket;

typedef struct HttpLink
{
	SagaLink	link;			/* first */
	HttpPool   *pool;
	MemoryContext context;		/* holds this */
	SagaTimer	timer;
	SagaTime	idle_since;
	CURL	   *easy;
	SagaHttpWaiter waiter;		/* for the host's addresses */
	bool		running;		/* in the hands of libcurl */
	SagaHttpRequest *request;	/* of the call */

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

/* ---- sockets ---- */

static curl_socket_t
open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
	HttpLink   *link = arg;
	SagaHttpSite *site = link->pool->site;
	int			fd;

	if (purpose != CURLSOCKTYPE_IPCXN ||
		(addr->family != AF_INET && addr->family != AF_INET6))
		return CURL_SOCKET_BAD;
	if (!saga_http_may_call(site, &addr->addr))
	{
		const void *bytes = addr->family == AF_INET ?
			(const void *) &((struct sockaddr_in *) &addr->addr)->sin_addr :
			(const void *) &((struct sockaddr_in6 *) &addr->addr)->sin6_addr;

		(void) inet_ntop(addr->family, bytes, link->refused_address,
						 sizeof(link->refused_address));
		return CURL_SOCKET_BAD;
	}
	if (!saga_http_reserve_socket())
	{
		link->no_descriptor = true;
		return CURL_SOCKET_BAD;
	}
	fd = socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol);
	if (fd < 0)
	{
		saga_http_release_socket();
		link->no_descriptor = true;
		return CURL_SOCKET_BAD;
	}
	pg_atomic_fetch_add_u64(&site->stat->connects, 1);
	pg_atomic_fetch_add_u32(&site->stat->connections, 1);
	return fd;
}

static void
forget_socket(HttpSocket *sock)
{
	saga_poll_remove(&sock->poll);
	dlist_delete(&sock->node);
	free(sock);
}

static HttpSocket *
find_socket(HttpPool *pool, curl_socket_t fd)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pool->sockets)
	{
		HttpSocket *sock = dlist_container(HttpSocket, node, iter.cur);

		if (sock->poll.fd == fd)
			return sock;
	}
	return NULL;
}

static int
close_socket(void *arg, curl_socket_t fd)
{
	HttpPool   *pool = arg;
	HttpSocket *sock = find_socket(pool, fd);

	if (sock)
		forget_socket(sock);
	pg_atomic_fetch_sub_u32(&pool->site->stat->connections, 1);
	saga_http_release_socket();
	return close(fd);
}

static void
socket_ready(SagaPollEntry *entry, uint32 events)
{
	HttpSocket *sock = (HttpSocket *) entry;
	HttpPool   *pool = sock->pool;
	int			running;

	if (sock->idle)
	{
		/* it was closed over there: libcurl sees that when it wants it again */
		forget_socket(sock);
		return;
	}
	pool->refs++;
	(void) curl_multi_socket_action(pool->multi, entry->fd,
									(events & SAGA_POLL_READ ? CURL_CSELECT_IN : 0) |
									(events & SAGA_POLL_WRITE ? CURL_CSELECT_OUT : 0),
									&running);
	drain(pool);
}

/*
 * libcurl tells which of its sockets it wants watched, and for what.  That of
 * a connection which is kept stays on our list, for the next request.
 */
static int
socket_changed(CURL *easy, curl_socket_t fd, int what, void *arg,
			   void *socket_arg)
{
	HttpPool   *pool = arg;
	HttpSocket *sock = socket_arg ? socket_arg : find_socket(pool, fd);
	uint32		events = (what & CURL_POLL_IN ? SAGA_POLL_READ : 0) |
		(what & CURL_POLL_OUT ? SAGA_POLL_WRITE : 0);

	if (what == CURL_POLL_REMOVE)
	{
		events = SAGA_POLL_READ;
		if (sock == NULL)
			return 0;
	}
	else if (sock == NULL)
	{
		/* what is not watched ends with its call's time-out */
		sock = calloc(1, sizeof(HttpSocket));
		if (sock == NULL)
			return 0;
		sock->pool = pool;
		sock->poll.fd = fd;
		sock->poll.events = events;
		sock->poll.ready = socket_ready;
		dlist_push_head(&pool->sockets, &sock->node);
		(void) saga_poll_try_add(&sock->poll);
	}
	if (sock->poll.events != events)
		(void) saga_poll_try_modify(&sock->poll, events);
	sock->idle = what == CURL_POLL_REMOVE;
	if (!sock->idle && socket_arg == NULL)
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

	if (link->begun++ > 0 && !link->request->safe)
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
	size_t		limit = link->pool->site->max_response;

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
	if (link->waiter.waiting)
		dlist_delete(&link->waiter.node);
	link->waiter.waiting = false;
	if (link->running)
		(void) curl_multi_remove_handle(link->pool->multi, link->easy);
	link->running = false;
	link->request = NULL;
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
	const char *server = link->pool->site->name;
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
			 link->pool->site->name);
	if (link->too_large || link->head_too_large)
	{
		snprintf(message, sizeof(message), "the answer of server \"%s\" is too large",
				 link->pool->site->name);
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
	saga_http_answer(call, link->pool->site->identity, &response);
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
	SagaHttpSite *site = pool->site;

	if (--pool->refs > 0)
		return;
	curl_multi_cleanup(pool->multi);
	while (!dlist_is_empty(&pool->sockets))
		forget_socket(dlist_head_element(HttpSocket, node, &pool->sockets));
	saga_timer_clear(&pool->timer);
	dlist_delete(&pool->node);
	pfree(pool);
	saga_http_site_release(site);
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

/* What is the same in all requests of a link. */
static void
set_options(HttpLink *link)
{
	SagaHttpSite *site = link->pool->site;
	CURL	   *easy = link->easy;

	curl_easy_setopt(easy, CURLOPT_PRIVATE, (char *) link);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, link->error);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);

	/* where to: what the server's options say, and nowhere else */
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, link);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
	curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, link->pool);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	if (site->cafile)
		curl_easy_setopt(easy, CURLOPT_CAINFO, site->cafile);

	/* how */
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "saga/1.0");
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(easy, CURLOPT_PIPEWAIT, site->tls ? 1L : 0L);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) site->connect_timeout_ms);
	curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN, CONNECTION_IDLE);
	curl_easy_setopt(easy, CURLOPT_MAXLIFETIME_CONN, CONNECTION_LIFE);
	curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 8192L);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, about_to_send);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, link);

	/* what comes back */
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, link);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, link);
}

/* False: out of memory. */
static bool
set_request(HttpLink *link)
{
	CURL	   *easy = link->easy;
	const SagaHttpRequest *request = link->request;
	bool		once = link->link.call->request.at_most_once;

	/* the two that libcurl copies */
	if (curl_easy_setopt(easy, CURLOPT_URL, request->url) != CURLE_OK ||
		curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method) != CURLE_OK)
		return false;
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, request->headers);

	/* each time: without them libcurl would start a thread to look them up */
	curl_easy_setopt(easy, CURLOPT_RESOLVE, link->pool->site->addresses);

	/* over a connection that was kept, libcurl might send it again */
	curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, once ? 1L : 0L);
	curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, once ? 1L : 0L);

	curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);	/* undoes the next two */
	if (strcmp(request->method, "HEAD") == 0)
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	else if (request->body || request->method[0] == 'P')
	{
		curl_easy_setopt(easy, CURLOPT_POST, 1L);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
						 (curl_off_t) (request->body ? strlen(request->body) : 0));
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request->body ? request->body : "");
	}
	return true;
}

static void
start_transfer(HttpLink *link)
{
	SagaFault	fault;

	if (set_request(link) &&
		curl_multi_add_handle(link->pool->multi, link->easy) == CURLM_OK)
	{
		link->running = true;
		return;
	}
	saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "53200",
				   "could not begin a request", NULL, NULL);
	saga_call_fault(link->link.call, &fault);
	call_done(link);
}

static void
host_resolved(SagaHttpWaiter *waiter, const SagaFault *fault)
{
	HttpLink   *link = SAGA_CONTAINER(HttpLink, waiter, waiter);

	if (fault == NULL)
		start_transfer(link);
	else
	{
		saga_call_fault(link->link.call, fault);
		call_done(link);
	}
}

static void
send_call(SagaLink *base, SagaConnCall *call)
{
	HttpLink   *link = (HttpLink *) base;
	SagaHttpSite *site = link->pool->site;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	link->request = saga_http_request(call, site->identity);
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
	if (link->request == NULL)
		call_done(link);
	else if (saga_http_site_resolved(site))
		start_transfer(link);
	else
		saga_http_site_wait(site, &link->waiter);
}

/* ---- pools and links ---- */

/* NULL: out of memory. */
static HttpPool *
make_pool(SagaHttpSite *site)
{
	HttpPool   *pool;
	CURLM	   *multi = curl_multi_init();

	if (multi == NULL)
		return NULL;
	pool = MemoryContextAllocZero(site->context, sizeof(HttpPool));
	pool->site = site;
	pool->multi = multi;
	dlist_init(&pool->sockets);
	dlist_push_head(&site->pools, &pool->node);
	site->refs++;
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, socket_changed);
	curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, pool);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, timer_changed);
	curl_multi_setopt(multi, CURLMOPT_TIMERDATA, pool);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) POOL_LINKS_TLS);
	return pool;
}

/* One with room for a link, held for the caller; or NULL: out of memory. */
static HttpPool *
pool_for(SagaEndpoint *endpoint)
{
	static bool library_ready = false;
	SagaHttpSite *site = endpoint->site;
	HttpPool   *pool = NULL;
	dlist_iter	iter;

	if (!library_ready && curl_global_init(CURL_GLOBAL_ALL) != CURLE_OK)
		return NULL;
	library_ready = true;
	/* one of other options goes with the last of its links */
	if (site == NULL || site->fingerprint != endpoint->server->fingerprint)
		endpoint->site = site = saga_http_site_make(endpoint);
	else
		site->refs++;
	dlist_foreach(iter, &site->pools)
	{
		HttpPool   *one = dlist_container(HttpPool, node, iter.cur);

		if (one->nlinks < (site->tls ? POOL_LINKS_TLS : POOL_LINKS))
		{
			pool = one;
			break;
		}
	}
	if (pool == NULL)
		pool = make_pool(site);
	if (pool)
	{
		pool->refs++;
		pool->nlinks++;
	}
	saga_http_site_release(site);
	return pool;
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
	link->waiter.resolved = host_resolved;
	link->idle_since = GetCurrentTimestamp();
	link->link.fingerprint = endpoint->server->fingerprint;
	saga_endpoint_link_add(endpoint, &link->link);
	if (easy == NULL)
	{
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "53200",
					   "could not set up libcurl", NULL, NULL);
		saga_endpoint_link_gone(&link->link, &fault);
		return;
	}
	set_options(link);
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
	{
		link->pool->nlinks--;
		release_pool(link->pool);
	}
	MemoryContextDelete(link->context);
}

/* A service has no barrier that could be asked, and nothing to be cleared. */
static bool
answer_here(SagaConnCall *call)
{
	switch (call->request.mode)
	{
		case SAGA_REQUEST_RUN:
		case SAGA_REQUEST_UNDO:
			return false;
		case SAGA_REQUEST_CLAIM:
			saga_call_error(call, SAGA_ANSWER_BROKEN, "0A000",
							"an HTTP service cannot be asked whether a call was made",
							NULL, "Find out there, then use force => true.");
			return true;
		case SAGA_REQUEST_PURGE:
			call->answer.kind = SAGA_ANSWER_DONE;
			return true;
		default:
			saga_call_error(call, SAGA_ANSWER_BROKEN, "0A000",
							"an HTTP service cannot take part in two-phase commit",
							NULL, NULL);
			return true;
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
