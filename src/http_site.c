/*
 * http_site.c
 *		Where calls of an HTTP endpoint go (see http_site.h).
 *
 * Owns what is made of a server's options, the addresses of its host, and the
 * process's budget of sockets.  Called by connector_http.c, in part from
 * libcurl's callbacks: what is called there raises no error.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>

#include "lib/stringinfo.h"
#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "http_site.h"

#define ADDRESSES_LIFE		(30 * SAGA_SECOND)
#define MORE_SOCKETS		20000

/* Addresses by what calling them could do. */
typedef enum Reach
{
	REACH_PUBLIC,
	REACH_LOOPBACK,
	REACH_PRIVATE,
	REACH_SPECIAL,				/* link-local, multicast, reserved */
} Reach;

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
	/* an IPv4 address inside: mapped, NAT64, 6to4 */
	if ((memcmp(a, zeros, 10) == 0 && a[10] == 0xff && a[11] == 0xff) ||
		memcmp(a, nat64, 12) == 0)
		return reach_of_ipv4(ipv4_at(a + 12));
	if (a[0] == 0x20 && a[1] == 0x02)
		return reach_of_ipv4(ipv4_at(a + 2));
	if ((a[0] & 0xfe) == 0xfc)
		return REACH_PRIVATE;
	if ((a[0] & 0xe0) != 0x20 || (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0 && a[3] == 0))
		return REACH_SPECIAL;
	return REACH_PUBLIC;
}

/*
 * May this site open a connection there?  Whoever made the server may have
 * meant an address that he wrote himself; a name can be made to mean anything
 * by others.
 */
bool
saga_http_may_call(const SagaHttpSite *site, const struct sockaddr *addr)
{
	Reach		reach;

	if (site->allow_private)
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
			return site->literal || pg_strcasecmp(site->host, "localhost") == 0;
		case REACH_PRIVATE:
			return site->literal;
		default:
			return false;
	}
}

/* ---- descriptors ---- */

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

bool
saga_http_reserve_socket(void)
{
	if (own_sockets < max_own_sockets)
		own_sockets++;
	else if (AcquireExternalFD())
		budgeted_sockets++;
	else
		return false;
	return true;
}

void
saga_http_release_socket(void)
{
	if (budgeted_sockets > 0)
	{
		budgeted_sockets--;
		ReleaseExternalFD();
	}
	else
		own_sockets--;
}

/* ---- names ---- */

static void
keep_addresses(SagaHttpSite *site, int n, const char *const *addresses)
{
	StringInfoData entry;
	struct curl_slist *list;

	initStringInfo(&entry);
	appendStringInfo(&entry, "%s:%s:", site->host, site->port);
	for (int i = 0; i < n; i++)
		appendStringInfo(&entry, strchr(addresses[i], ':') ? "%s[%s]" : "%s%s",
						 i > 0 ? "," : "", addresses[i]);
	list = curl_slist_append(NULL, entry.data);
	pfree(entry.data);
	if (list == NULL)
		return;
	curl_slist_free_all(site->addresses);
	site->addresses = list;
	site->resolved_at = GetCurrentTimestamp();
}

static void
name_resolved(void *arg, int n, const char *const *addresses,
			  const char *fault_text)
{
	SagaHttpSite *site = arg;
	SagaFault	fault;
	char		message[256];

	site->resolve = NULL;
	site->resolving = false;
	site->refs++;
	if (n > 0)
		keep_addresses(site, n, addresses);
	snprintf(message, sizeof(message),
			 "could not resolve host \"%s\" of server \"%s\": %s", site->host,
			 site->name, fault_text ? fault_text : "it has no address");
	saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08001", message, NULL, NULL);
	if (site->addresses == NULL)
		saga_endpoint_failed(site->endpoint, &fault);
	while (!dlist_is_empty(&site->waiting))
	{
		SagaHttpWaiter *waiter = dlist_head_element(SagaHttpWaiter, node,
													&site->waiting);

		dlist_delete(&waiter->node);
		waiter->waiting = false;
		/* better the addresses of half a minute ago than none */
		waiter->resolved(waiter, site->addresses ? NULL : &fault);
	}
	saga_http_site_release(site);
}

bool
saga_http_site_resolved(const SagaHttpSite *site)
{
	return site->literal ||
		(site->addresses &&
		 site->resolved_at + ADDRESSES_LIFE > GetCurrentTimestamp());
}

void
saga_http_site_wait(SagaHttpSite *site, SagaHttpWaiter *waiter)
{
	SagaResolve *resolve;

	waiter->waiting = true;
	dlist_push_tail(&site->waiting, &waiter->node);
	if (site->resolving)
		return;
	/* the answer may come, and end all this, before it returns */
	site->resolving = true;
	site->refs++;
	resolve = saga_resolve_start(site->host, name_resolved, site);
	if (site->resolving)
		site->resolve = resolve;
	saga_http_site_release(site);
}

/* ---- a site ---- */

SagaHttpSite *
saga_http_site_make(SagaEndpoint *endpoint)
{
	const SagaServer *server = endpoint->server;
	const char *cafile = saga_server_value(server, "sslrootcert");
	MemoryContext context = AllocSetContextCreate(saga_connector_context(),
												  "saga HTTP site",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaHttpSite *site = palloc0(sizeof(SagaHttpSite));
	struct in6_addr unused;

	site->refs = 1;
	site->endpoint = endpoint;
	site->fingerprint = server->fingerprint;
	site->context = context;
	site->stat = endpoint->stat;
	site->name = pstrdup(server->name);
	site->identity = saga_http_identity(server);
	site->host = pstrdup(saga_server_value(server, "host"));
	site->port = pstrdup(saga_server_value(server, "port"));
	site->cafile = cafile ? pstrdup(cafile) : NULL;
	site->tls = strncmp(saga_server_value(server, "base"), "https:", 6) == 0;
	site->allow_private = server->allow_private;
	site->literal = inet_pton(AF_INET, site->host, &unused) == 1 ||
		inet_pton(AF_INET6, site->host, &unused) == 1;
	site->connect_timeout_ms = server->connect_timeout_ms;
	site->max_response = saga_connector_max_result();
	if (server->max_response > 0)
		site->max_response = Min(site->max_response, server->max_response);
	dlist_init(&site->pools);
	dlist_init(&site->waiting);
	MemoryContextSwitchTo(old);
	make_room(server->pool_size);
	return site;
}

void
saga_http_site_release(SagaHttpSite *site)
{
	if (--site->refs > 0)
		return;
	if (site->endpoint->site == site)
		site->endpoint->site = NULL;
	if (site->resolve)
		saga_resolve_forget(site->resolve);
	curl_slist_free_all(site->addresses);
	MemoryContextDelete(site->context);
}
