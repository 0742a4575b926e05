/*
 * connector_internal.h
 *		Between connector.c (who may call whom, and when) and the connectors
 *		of each kind of server (how one call is made): connector_libpq.c,
 *		connector_http.c.
 *
 * An *endpoint* is a server as one user; a *link* makes one call at a time (a
 * connection, or a place to make calls in where connections are somebody
 * else's); a *call* is a submitted request until it is answered.
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

/* ---- connector_timers.c for connector.c ---- */

extern void saga_timers_begin(MemoryContext context);
extern void saga_timers_end(void);
extern SagaTime saga_timers_next_due(void);
extern bool saga_timers_run(SagaTime now);

/* ---- connectors ---- */

typedef struct SagaLink SagaLink;

typedef struct SagaConnector
{
	/*
	 * Is a usable link a connection, made before the first call and proof
	 * that the way there is good?  If not, it is usable from the start, and
	 * the connector counts connections itself.
	 */
	bool		link_is_connection;
	SagaTime	grace;			/* after a call's time-out, for the other side
								 * to end it by itself */

	/*
	 * Start to connect; the link adds itself to the endpoint, and ends with
	 * saga_endpoint_link_free() or _gone(), perhaps before this returns.
	 */
	void		(*open) (SagaEndpoint *endpoint);

	/* Give a call to a free link.  Its failure is answered like any other. */
	void		(*send) (SagaLink *link, SagaConnCall *call);

	/* Close and free, without a word to connector.c. */
	void		(*close) (SagaLink *link);

	/*
	 * What needs no call: true if the answer is in call->answer.  May be NULL.
	 */
	bool		(*answer_here) (SagaConnCall *call);
} SagaConnector;

extern const SagaConnector saga_libpq_connector;
extern const SagaConnector saga_http_connector;

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
	const SagaConnector *connector;
	void	   *site;			/* the connector's own; NULL at first */
	SagaServer *server;			/* as last submitted */
	MemoryContext server_context;
	SagaParticipantStat *stat;
	dlist_head	links;			/* all of them */
	int			nlinks;
	int			nopening;		/* of these not yet usable */
	dlist_head	idle;			/* usable and free, last used first */
	dlist_head	queue;			/* calls without a link, oldest first */
	dlist_head	ending;			/* the same, of those that free locks */
	int			nqueued;		/* in both */
	int			nordinary;		/* links with a call that was in 'queue' */
	SagaCircuit circuit;
	int			failures;		/* in a row, of connections */
	SagaTime	open_for;		/* how long the circuit was last opened */
	SagaTime	retry_at;		/* no new connection before */
	SagaTimer	timer;			/* retry_at, or end of the open time */
	SagaConnCall *probe;		/* the one call of a half-open circuit, where
								 * opening a link proves nothing */
	SagaTime	rate_due;		/* when a call at the server's rate is due */
	SagaTimer	rate_timer;
	bool		pumping;
	SagaFault	fault;			/* the last one */
};

/* ---- links: what connector.c sees of them ---- */

struct SagaLink
{
	dlist_node	node;			/* in endpoint->links */
	dlist_node	idle_node;		/* in endpoint->idle */
	SagaEndpoint *endpoint;
	const SagaConnector *connector;
	SagaConnCall *call;			/* being made; NULL: none */
	uint64		fingerprint;	/* of the settings it was opened with */
	bool		opening;
	bool		idle;
};

/* ---- calls ---- */

struct SagaConnCall
{
	dlist_node	node;			/* in a queue, or among the answered ones */
	SagaTimer	timer;
	MemoryContext context;		/* holds this and all it points to */
	SagaEndpoint *endpoint;
	SagaLink   *link;			/* NULL: not given to one */
	SagaRequest request;		/* server is the endpoint's */
	SagaTime	sent;			/* when a link got it; 0: none did */
	bool		in_doubt;		/* it may be done, for all we know: hanging up
								 * now makes its outcome unknown */
	bool		ends;			/* a prepared transaction, and with it locks
								 * that others may wait for */
	bool		retried;		/* a lost prepared statement is forgiven once */
	char	  **parts;			/* PREPARE: results of the steps */
	bool		answered;
	SagaAnswer	answer;
};

/* ---- connector.c for the connectors ---- */

extern const SagaEpoch *saga_connector_epoch(void);
extern int	saga_connector_max_result(void);
extern MemoryContext saga_connector_context(void);

/* As UUIDs are written: 36 characters and a zero. */
extern void saga_uuid_text(const pg_uuid_t *uuid, char *out);

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

/* A call failed on the way there, and its link is of further use. */
extern void saga_endpoint_failed(SagaEndpoint *endpoint,
								 const SagaFault *fault);

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

#endif							/* SAGA_CONNECTOR_INTERNAL_H */
