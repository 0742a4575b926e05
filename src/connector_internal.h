/*
 * connector_internal.h
 *		Between connector.c (who may call whom, and when) and
 *		connector_libpq.c (how one connection makes one call).
 *
 * An *endpoint* is a server as one user; a *link* is one connection to it; a
 * *call* is a submitted request until it is answered.
 */
#ifndef SAGA_CONNECTOR_INTERNAL_H
#define SAGA_CONNECTOR_INTERNAL_H

#include "postgres.h"

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "connector.h"
#include "shmem.h"

typedef struct SagaConnCall SagaConnCall;
typedef struct SagaEndpoint SagaEndpoint;

/* The struct a member is in; lib/ilist.h and pairingheap.h know theirs only. */
#define SAGA_CONTAINER(type, member, pointer) \
	((type *) (((char *) (pointer)) - offsetof(type, member)))

/* ---- timers ---- */

typedef struct SagaTimer
{
	pairingheap_node node;
	SagaTime	due;			/* 0: not set */
	void		(*fire) (struct SagaTimer *timer);
} SagaTimer;

extern void saga_timer_set(SagaTimer *timer, SagaTime due,
						   void (*fire) (SagaTimer *timer));
extern void saga_timer_clear(SagaTimer *timer);

/* ---- endpoints ---- */

typedef enum SagaCircuit
{
	SAGA_CIRCUIT_CLOSED,
	SAGA_CIRCUIT_OPEN,			/* nothing is tried; calls are answered at once */
	SAGA_CIRCUIT_HALF_OPEN,		/* one connection is tried */
} SagaCircuit;

typedef struct SagaEndpointKey
{
	Oid			serverid;
	Oid			userid;
} SagaEndpointKey;

/* Why the last attempt failed; also what calls get that it answers. */
typedef struct SagaFault
{
	SagaAnswerKind kind;
	char		sqlstate[6];
	char		message[1024];
	char		detail[1024];
	char		hint[256];
} SagaFault;

struct SagaEndpoint
{
	SagaEndpointKey key;		/* first: hash key */
	SagaServer *server;			/* as last submitted */
	MemoryContext server_context;
	SagaParticipantStat *stat;
	dlist_head	links;			/* all of them */
	int			nlinks;
	int			nopening;		/* of these not yet usable */
	dlist_head	idle;			/* usable and free, last used first */
	dlist_head	queue;			/* calls without a link, oldest first */
	int			nqueued;
	SagaCircuit circuit;
	int			failures;		/* in a row, of connections */
	SagaTime	open_for;		/* how long the circuit was last opened */
	SagaTime	retry_at;		/* no new connection before */
	SagaTimer	timer;			/* retry_at, or end of the open time */
	bool		pumping;
	SagaFault	fault;			/* the last one */
};

/* ---- links: what connector.c sees of a connection ---- */

typedef struct SagaLink
{
	dlist_node	node;			/* in endpoint->links */
	dlist_node	idle_node;		/* in endpoint->idle */
	SagaEndpoint *endpoint;
	SagaConnCall *call;			/* being made; NULL: none */
	uint64		fingerprint;	/* of the settings it was opened with */
	bool		opening;
	bool		idle;
} SagaLink;

/* ---- calls ---- */

struct SagaConnCall
{
	dlist_node	node;			/* in a queue, or among the answered ones */
	SagaTimer	timer;
	MemoryContext context;		/* holds this and all it points to */
	SagaEndpoint *endpoint;
	SagaLink   *link;			/* NULL: not given to one */
	SagaRequest request;		/* server is the endpoint's */
	SagaTime	sent;			/* 0: nothing of it has left */
	bool		retried;		/* a lost prepared statement is forgiven once */
	char	  **parts;			/* PREPARE: results of the steps */
	bool		answered;
	SagaAnswer	answer;
};

/* ---- connector.c for connector_libpq.c ---- */

extern const SagaEpoch *saga_connector_epoch(void);
extern int	saga_connector_max_result(void);
extern MemoryContext saga_connector_context(void);

/* A new link, of which 'link' is a part, enters its endpoint. */
extern void saga_endpoint_link_add(SagaEndpoint *endpoint, SagaLink *link);

/*
 * The link has become usable, or its call is answered.  It may be closed by
 * this (settings have changed); calls that wait go out by the next pump.
 */
extern void saga_endpoint_link_free(SagaLink *link);

/*
 * The link is of no use any more: closes it.  With a fault: the endpoint
 * failed, or with NULL: just this.  Pumps.
 */
extern void saga_endpoint_link_gone(SagaLink *link, const SagaFault *fault);

/* Something was answered by the other side: the way there is good. */
extern void saga_endpoint_works(SagaEndpoint *endpoint);

/* Send what waits, open what is needed. */
extern void saga_endpoint_pump(SagaEndpoint *endpoint);

/* Answers: fill call->answer, or use one of these; then finish. */
extern void saga_call_error(SagaConnCall *call, SagaAnswerKind kind,
							const char *sqlstate, const char *message,
							const char *detail, const char *hint);
extern void saga_call_fault(SagaConnCall *call, const SagaFault *fault);
extern void saga_call_finish(SagaConnCall *call);	/* frees the call */

extern void saga_fault_set(SagaFault *fault, SagaAnswerKind kind,
						   const char *sqlstate, const char *message,
						   const char *detail, const char *hint);

/* ---- connector_libpq.c for connector.c ---- */

/*
 * Start to connect; the link adds itself to the endpoint, and ends with
 * saga_endpoint_link_free() or _gone(), perhaps before this returns.
 */
extern void saga_link_open(SagaEndpoint *endpoint);

/* Give a call to a free link.  Its failure is answered like any other. */
extern void saga_link_send(SagaLink *link, SagaConnCall *call);

/* Close and free, without a word to connector.c. */
extern void saga_link_close(SagaLink *link);

#endif							/* SAGA_CONNECTOR_INTERNAL_H */
