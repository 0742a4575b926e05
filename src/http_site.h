/*
 * http_site.h
 *		Where calls of an endpoint go: what stands in the server's options, the
 *		addresses of its host, and which of them may be called.
 *
 * Between connector_http.c and http_site.c only.
 */
#ifndef SAGA_HTTP_SITE_H
#define SAGA_HTTP_SITE_H

#include "postgres.h"

#include <sys/socket.h>

#include "connector_http.h"
#include "resolver.h"

/* A call that waits for its host's addresses. */
typedef struct SagaHttpWaiter
{
	dlist_node	node;
	bool		waiting;

	/* 'fault' is NULL if there are some */
	void		(*resolved) (struct SagaHttpWaiter *waiter,
							 const SagaFault *fault);
} SagaHttpWaiter;

typedef struct SagaHttpSite
{
	SagaEndpoint *endpoint;
	uint64		fingerprint;	/* of the options it is made for */
	MemoryContext context;		/* holds this */
	int			refs;			/* its pools, and who works on it */
	dlist_head	pools;
	SagaParticipantStat *stat;
	char	   *name;			/* of the server */
	SagaHttpIdentity *identity;
	char	   *host;
	char	   *port;
	char	   *cafile;			/* or NULL: the system's */
	bool		tls;
	bool		allow_private;
	bool		literal;		/* the host is an address */
	int			connect_timeout_ms;
	int			max_response;

	/* of the host */
	struct curl_slist *addresses;	/* for CURLOPT_RESOLVE */
	SagaTime	resolved_at;	/* 0: never yet */
	SagaResolve *resolve;		/* under way */
	bool		resolving;
	dlist_head	waiting;		/* SagaHttpWaiter */
} SagaHttpSite;

/* With one reference, the caller's. */
extern SagaHttpSite *saga_http_site_make(SagaEndpoint *endpoint);
extern void saga_http_site_release(SagaHttpSite *site);

/* Does libcurl find the host without looking it up? */
extern bool saga_http_site_resolved(const SagaHttpSite *site);

/* Wait for addresses; the waiter may be told before this returns. */
extern void saga_http_site_wait(SagaHttpSite *site, SagaHttpWaiter *waiter);

/* May a connection be opened there?  Raises nothing. */
extern bool saga_http_may_call(const SagaHttpSite *site,
							   const struct sockaddr *addr);

/* One more socket of this process, or one less.  Raises nothing. */
extern bool saga_http_reserve_socket(void);
extern void saga_http_release_socket(void);

#endif							/* SAGA_HTTP_SITE_H */
