/*
 * connector.c
 *		Calls to participants: which call goes when, over how many
 *		connections, and what is answered without one.
 *
 * Owns endpoints (a server as one user), their queues, limits and circuit
 * breakers, and the life of a call from submit to answer.  Used by
 * a coordinator, between transactions.  Must not touch SPI, tables or catalogs
 * (server objects come with the request), must not block, and decides nothing
 * about sagas.  How a call is made is the business of connector_libpq.c and
 * connector_http.c, which it knows by the functions in connector_internal.h.
 *
 * Nothing is shared between endpoints but the loop, so one that is slow or
 * dead costs the others nothing.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "storage/ipc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "connector_internal.h"
#include "guc.h"
#include "resolver.h"

#define FAILURES_TO_OPEN	5
#define OPEN_FIRST			(1 * SAGA_SECOND)
#define OPEN_LONGEST		(30 * SAGA_SECOND)
#define BACKOFF_FIRST		(SAGA_SECOND / 20)
#define BACKOFF_LONGEST		(1 * SAGA_SECOND)

/* Beyond pool_size, for calls that end prepared transactions. */
#define ENDING_LINKS		2

/* At a limited rate, calls may make up for so much idle time at once. */
#define RATE_BURST			(SAGA_SECOND / 10)

typedef struct TagEntry
{
	uint64		tag;			/* hash key */
	SagaConnCall *call;
} TagEntry;

static MemoryContext connector_context = NULL;
static MemoryContext answer_context;	/* current in the callback */
static SagaEpoch epoch;
static int	max_result_bytes;
static SagaAnswerCallback answer_callback;
static void *answer_arg;
static HTAB *endpoints = NULL;
static HTAB *tags = NULL;
static int	inside_api = 0;		/* within submit or cancel */
static dlist_head answered = DLIST_STATIC_INIT(answered);	/* to be delivered */

static void endpoint_timer(SagaTimer *timer);

const SagaEpoch *
saga_connector_epoch(void)
{
	return &epoch;
}

int
saga_connector_max_result(void)
{
	return max_result_bytes;
}

MemoryContext
saga_connector_context(void)
{
	return connector_context;
}

void
saga_uuid_text(const pg_uuid_t *uuid, char *out)
{
	static const char hex[] = "0123456789abcdef";

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = hex[uuid->data[i] >> 4];
		*out++ = hex[uuid->data[i] & 0xf];
	}
	*out = '\0';
}

/* ---- answers ---- */

static char *
copy_valid(MemoryContext context, const char *text, int limit)
{
	int			len;
	char	   *copy;

	if (text == NULL || *text == '\0')
		return NULL;
	len = strlen(text);
	if (!pg_verifymbstr(text, len, true))
	{
		/* a participant must not bring broken text into our tables */
		len = Min(len, limit);
		copy = MemoryContextAlloc(context, len + 1);
		for (int i = 0; i < len; i++)
			copy[i] = IS_HIGHBIT_SET(text[i]) ? '?' : text[i];
		copy[len] = '\0';
		return copy;
	}
	len = pg_mbcliplen(text, len, limit);
	copy = MemoryContextAlloc(context, len + 1);
	memcpy(copy, text, len);
	copy[len] = '\0';
	return copy;
}

void
saga_call_error(SagaConnCall *call, SagaAnswerKind kind, const char *sqlstate,
				const char *message, const char *detail, const char *hint)
{
	SagaAnswer *answer = &call->answer;

	answer->kind = kind;
	/* the code of an unknown outcome must not be read as a known failure */
	answer->has_sqlstate = kind != SAGA_ANSWER_UNKNOWN;
	strlcpy(answer->sqlstate, sqlstate, sizeof(answer->sqlstate));
	answer->message = copy_valid(call->context, message, 4096);
	answer->detail = copy_valid(call->context, detail, 8192);
	answer->hint = copy_valid(call->context, hint, 4096);
	answer->result = NULL;
	answer->ran = false;
}

void
saga_call_fault(SagaConnCall *call, const SagaFault *fault)
{
	saga_call_error(call, fault->kind, fault->sqlstate, fault->message,
					fault->detail, fault->hint);
}

void
saga_fault_set(SagaFault *fault, SagaAnswerKind kind, const char *sqlstate,
			   const char *message, const char *detail, const char *hint)
{
	memset(fault, 0, sizeof(*fault));
	fault->kind = kind;
	strlcpy(fault->sqlstate, sqlstate, sizeof(fault->sqlstate));
	strlcpy(fault->message, message ? message : "", sizeof(fault->message));
	strlcpy(fault->detail, detail ? detail : "", sizeof(fault->detail));
	strlcpy(fault->hint, hint ? hint : "", sizeof(fault->hint));
}

static void
count_answer(SagaParticipantStat *stat, const SagaAnswer *answer)
{
	SagaAnswerKind kind = answer->has_sqlstate ?
		saga_classify_sqlstate(answer->sqlstate, NULL) : answer->kind;

	pg_atomic_fetch_add_u64(&stat->calls, 1);
	switch (kind)
	{
		case SAGA_ANSWER_DONE:
		case SAGA_ANSWER_REFUSED:
		case SAGA_ANSWER_ACCEPTED:
			pg_atomic_fetch_add_u64(&stat->done, 1);
			break;
		case SAGA_ANSWER_DECLINED:
			pg_atomic_fetch_add_u64(&stat->declined, 1);
			break;
		case SAGA_ANSWER_TRANSIENT:
			pg_atomic_fetch_add_u64(&stat->transient, 1);
			break;
		case SAGA_ANSWER_BROKEN:
			pg_atomic_fetch_add_u64(&stat->broken, 1);
			break;
		case SAGA_ANSWER_UNKNOWN:
			pg_atomic_fetch_add_u64(&stat->unknown, 1);
			break;
	}
	if (answer->latency > 0)
	{
		pg_atomic_fetch_add_u64(&stat->latency_us, answer->latency);
		if (pg_atomic_read_u64(&stat->latency_max_us) < (uint64) answer->latency)
			pg_atomic_write_u64(&stat->latency_max_us, answer->latency);
	}
}

/* Take a call off everything: it only waits to be told about, then. */
static void
detach_call(SagaConnCall *call)
{
	SagaEndpoint *endpoint = call->endpoint;

	Assert(!call->answered);
	saga_timer_clear(&call->timer);
	if (endpoint->probe == call)
		endpoint->probe = NULL;
	if (call->link == NULL)
	{
		dlist_delete(&call->node);
		endpoint->nqueued--;
		pg_atomic_fetch_sub_u32(&endpoint->stat->queued, 1);
	}
	else
	{
		pg_atomic_fetch_sub_u32(&endpoint->stat->in_flight, 1);
		endpoint->nordinary -= !call->ends;
	}
	call->link = NULL;
	call->answered = true;
	if (call->sent != 0)
		call->answer.latency = Max(GetCurrentTimestamp() - call->sent, 1);
}

/* Tell the caller.  The callback may submit again. */
static void
deliver(SagaConnCall *call)
{
	static int	depth = 0;
	MemoryContext old;

	call->answer.tag = call->request.tag;
	count_answer(call->endpoint->stat, &call->answer);
	if (call->request.tag != 0)
		hash_search(tags, &call->request.tag, HASH_REMOVE, NULL);
	old = MemoryContextSwitchTo(answer_context);
	depth++;
	answer_callback(&call->answer, answer_arg);
	depth--;
	MemoryContextSwitchTo(old);
	if (depth == 0)
		MemoryContextReset(answer_context);
	MemoryContextDelete(call->context);
}

static void
finish_later(SagaConnCall *call)
{
	detach_call(call);
	dlist_push_tail(&answered, &call->node);
}

void
saga_call_finish(SagaConnCall *call)
{
	/* the callback must not come from inside of submit and cancel */
	if (inside_api > 0)
	{
		finish_later(call);
		return;
	}
	detach_call(call);
	deliver(call);
}

static bool
deliver_answered(void)
{
	bool		any = false;

	while (!dlist_is_empty(&answered))
	{
		deliver(dlist_container(SagaConnCall, node,
								dlist_pop_head_node(&answered)));
		any = true;
	}
	return any;
}

/* ---- circuit breaker ---- */

static void
set_circuit(SagaEndpoint *endpoint, SagaCircuit circuit)
{
	endpoint->circuit = circuit;
	pg_atomic_write_u32(&endpoint->stat->circuit, (uint32) circuit);
}

/* What a call gets while the circuit is open. */
static void
answer_open_circuit(SagaConnCall *call)
{
	SagaEndpoint *endpoint = call->endpoint;
	SagaTime	left = endpoint->retry_at - GetCurrentTimestamp();
	char		message[256];

	if (endpoint->fault.kind == SAGA_ANSWER_BROKEN)
	{
		/* waiting mends nothing: say what is wrong, not that we wait */
		saga_call_fault(call, &endpoint->fault);
		return;
	}
	/* not the last failure itself, whose code may have overrides */
	snprintf(message, sizeof(message),
			 "circuit of server \"%s\" is open for another " INT64_FORMAT " ms after %d failures",
			 endpoint->server->name, Max(left, 0) / 1000, endpoint->failures);
	saga_call_error(call, SAGA_ANSWER_TRANSIENT, "08001", message,
					endpoint->fault.message, NULL);
}

/* All that waits there is answered with what went wrong. */
static void
fail_queue(SagaEndpoint *endpoint)
{
	while (endpoint->nqueued > 0)
	{
		SagaConnCall *call = dlist_head_element(SagaConnCall, node,
												dlist_is_empty(&endpoint->queue) ?
												&endpoint->ending : &endpoint->queue);

		saga_call_fault(call, &endpoint->fault);
		finish_later(call);
	}
}

/* A connection could not be made or broke: wait, and longer each time. */
void
saga_endpoint_failed(SagaEndpoint *endpoint, const SagaFault *fault)
{
	SagaTime	now = GetCurrentTimestamp();
	bool		probe = endpoint->circuit == SAGA_CIRCUIT_HALF_OPEN;

	endpoint->fault = *fault;
	if (endpoint->connector->link_is_connection &&
		endpoint->nlinks > endpoint->nopening)
	{
		/* others work: the pool cannot grow, and that is all */
		endpoint->retry_at = now + BACKOFF_LONGEST;
		saga_timer_set(&endpoint->timer, endpoint->retry_at, endpoint_timer);
		return;
	}
	/* those that fail after the circuit opened were on their way before */
	if (endpoint->circuit == SAGA_CIRCUIT_OPEN)
		return;
	endpoint->failures++;
	if (probe || endpoint->failures >= FAILURES_TO_OPEN)
	{
		endpoint->open_for = endpoint->open_for == 0 ? OPEN_FIRST :
			Min(endpoint->open_for * 2, OPEN_LONGEST);
		endpoint->retry_at = now + endpoint->open_for;
		set_circuit(endpoint, SAGA_CIRCUIT_OPEN);
		fail_queue(endpoint);
	}
	else
	{
		endpoint->retry_at = now + Min(BACKOFF_FIRST << (endpoint->failures - 1),
									   BACKOFF_LONGEST);
		if (fault->kind == SAGA_ANSWER_BROKEN)
			fail_queue(endpoint);
	}
	saga_timer_set(&endpoint->timer, endpoint->retry_at, endpoint_timer);
}

void
saga_endpoint_works(SagaEndpoint *endpoint)
{
	if (endpoint->failures == 0 && endpoint->circuit == SAGA_CIRCUIT_CLOSED)
		return;
	endpoint->failures = 0;
	endpoint->open_for = 0;
	endpoint->retry_at = 0;
	set_circuit(endpoint, SAGA_CIRCUIT_CLOSED);
}

static void
endpoint_timer(SagaTimer *timer)
{
	SagaEndpoint *endpoint = SAGA_CONTAINER(SagaEndpoint, timer, timer);

	if (endpoint->circuit == SAGA_CIRCUIT_OPEN)
		set_circuit(endpoint, SAGA_CIRCUIT_HALF_OPEN);
	saga_endpoint_pump(endpoint);
}

/* ---- endpoints and links ---- */

static void
set_server(SagaEndpoint *endpoint, const SagaServer *server)
{
	MemoryContext old_context = endpoint->server_context;
	MemoryContext old;
	SagaServer *copy;

	endpoint->server_context = AllocSetContextCreate(connector_context,
													 "saga endpoint",
													 ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(endpoint->server_context);
	copy = palloc(sizeof(SagaServer));
	*copy = *server;
	copy->name = pstrdup(server->name);
	copy->search_path = server->search_path ? pstrdup(server->search_path) : NULL;
	copy->keywords = palloc0(sizeof(char *) * (server->npairs + 1));
	copy->values = palloc0(sizeof(char *) * (server->npairs + 1));
	for (int i = 0; i < server->npairs; i++)
	{
		copy->keywords[i] = pstrdup(server->keywords[i]);
		copy->values[i] = pstrdup(server->values[i]);
	}
	MemoryContextSwitchTo(old);
	endpoint->server = copy;
	endpoint->connector = server->kind == SAGA_SERVER_HTTP ?
		&saga_http_connector : &saga_libpq_connector;
	if (old_context)
		MemoryContextDelete(old_context);
}

void
saga_endpoint_link_add(SagaEndpoint *endpoint, SagaLink *link)
{
	link->endpoint = endpoint;
	link->connector = endpoint->connector;
	link->opening = true;
	link->idle = false;
	dlist_push_tail(&endpoint->links, &link->node);
	endpoint->nlinks++;
	endpoint->nopening++;
}

static void
drop_link(SagaLink *link)
{
	SagaEndpoint *endpoint = link->endpoint;

	dlist_delete(&link->node);
	if (link->idle)
		dlist_delete(&link->idle_node);
	endpoint->nlinks--;
	if (link->opening)
		endpoint->nopening--;
	else if (link->connector->link_is_connection)
		pg_atomic_fetch_sub_u32(&endpoint->stat->connections, 1);
	link->connector->close(link);
}

void
saga_endpoint_link_free(SagaLink *link)
{
	SagaEndpoint *endpoint = link->endpoint;

	if (link->opening)
	{
		link->opening = false;
		endpoint->nopening--;
		if (link->connector->link_is_connection)
			pg_atomic_fetch_add_u32(&endpoint->stat->connections, 1);
	}
	if (link->fingerprint != endpoint->server->fingerprint)
	{
		drop_link(link);
		return;
	}
	link->idle = true;
	dlist_push_head(&endpoint->idle, &link->idle_node);
}

void
saga_endpoint_link_gone(SagaLink *link, const SagaFault *fault)
{
	SagaEndpoint *endpoint = link->endpoint;

	drop_link(link);
	if (fault)
		saga_endpoint_failed(endpoint, fault);
	saga_endpoint_pump(endpoint);
}

static void
close_idle(SagaEndpoint *endpoint)
{
	while (!dlist_is_empty(&endpoint->idle))
		drop_link(dlist_head_element(SagaLink, idle_node, &endpoint->idle));
}

static SagaEndpoint *
find_endpoint(const SagaServer *server)
{
	SagaEndpointKey key;
	SagaEndpoint *endpoint;
	bool		found;

	memset(&key, 0, sizeof(key));
	key.serverid = server->serverid;
	key.userid = server->userid;
	endpoint = hash_search(endpoints, &key, HASH_ENTER, &found);
	if (!found)
	{
		memset(((char *) endpoint) + sizeof(key), 0,
			   sizeof(SagaEndpoint) - sizeof(key));
		dlist_init(&endpoint->links);
		dlist_init(&endpoint->idle);
		dlist_init(&endpoint->queue);
		dlist_init(&endpoint->ending);
		endpoint->stat = saga_participant_stat(server->serverid);
		set_server(endpoint, server);
	}
	else if (endpoint->server->fingerprint != server->fingerprint)
	{
		/* new settings may be what mends it: begin with a clean slate */
		set_server(endpoint, server);
		close_idle(endpoint);
		saga_endpoint_works(endpoint);
		saga_timer_clear(&endpoint->timer);
	}
	return endpoint;
}

static bool
may_open(SagaEndpoint *endpoint)
{
	int			limit = endpoint->server->pool_size +
		(dlist_is_empty(&endpoint->ending) ? 0 : ENDING_LINKS);

	if (endpoint->nlinks >= limit || endpoint->nopening >= endpoint->nqueued)
		return false;
	switch (endpoint->circuit)
	{
		case SAGA_CIRCUIT_OPEN:
			return false;
		case SAGA_CIRCUIT_HALF_OPEN:
			return endpoint->nopening == 0;
		case SAGA_CIRCUIT_CLOSED:
			/* after a failure one at a time, until something works */
			if (endpoint->failures > 0 && endpoint->nopening > 0)
				return false;
			return endpoint->retry_at == 0 ||
				endpoint->retry_at <= GetCurrentTimestamp();
	}
	return false;
}

static void
call_timer(SagaTimer *timer)
{
	SagaConnCall *call = SAGA_CONTAINER(SagaConnCall, timer, timer);
	SagaEndpoint *endpoint = call->endpoint;
	SagaLink   *link = call->link;
	SagaFault	fault;
	char		message[256];

	if (link == NULL)
	{
		snprintf(message, sizeof(message),
				 "no connection to server \"%s\" became free within %d ms",
				 endpoint->server->name, call->request.timeout_ms);
		saga_call_error(call, SAGA_ANSWER_TRANSIENT, "53300", message,
						endpoint->failures > 0 ? endpoint->fault.message : NULL,
						"Increase the server's option pool_size, or find out why it is slow.");
		/* that the rate was set below what is asked of it is nobody's failure */
		call->answer.free = endpoint->failures == 0 && endpoint->server->rate > 0;
		saga_call_finish(call);
		return;
	}

	/*
	 * The participant should have ended it by itself.  Hanging up is all that
	 * is sure not to block; the key tells later what happened.
	 */
	snprintf(message, sizeof(message), "no answer from server \"%s\" within %d ms",
			 endpoint->server->name, call->request.timeout_ms);
	if (call->in_doubt)
		saga_fault_set(&fault, SAGA_ANSWER_UNKNOWN, "57014", message, NULL, NULL);
	else
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08001", message,
					   "The call was not sent.", NULL);
	saga_call_fault(call, &fault);
	link->call = NULL;
	if (call->in_doubt && !link->connector->link_is_connection)
	{
		/* one request that is slow says nothing of the way there */
		saga_call_finish(call);
		saga_endpoint_link_gone(link, NULL);
		return;
	}
	saga_call_finish(call);
	fault.kind = SAGA_ANSWER_TRANSIENT; /* for those that are not sent */
	saga_endpoint_link_gone(link, &fault);
}

static void
send_call(SagaEndpoint *endpoint, SagaLink *link, SagaConnCall *call)
{
	SagaTime	now = GetCurrentTimestamp();

	dlist_delete(&call->node);
	endpoint->nqueued--;
	pg_atomic_fetch_sub_u32(&endpoint->stat->queued, 1);
	pg_atomic_fetch_add_u32(&endpoint->stat->in_flight, 1);
	endpoint->nordinary += !call->ends;
	call->link = link;
	link->call = call;
	call->sent = now;
	call->in_doubt = link->connector->link_is_connection;
	if (endpoint->circuit == SAGA_CIRCUIT_HALF_OPEN)
		endpoint->probe = call;
	saga_timer_set(&call->timer,
				   now + call->request.timeout_ms * INT64CONST(1000) +
				   link->connector->grace, call_timer);
	link->connector->send(link, call);
}

static void
rate_timer(SagaTimer *timer)
{
	saga_endpoint_pump(SAGA_CONTAINER(SagaEndpoint, rate_timer, timer));
}

/*
 * The server's option rate, which is for all coordinators together.  False: a
 * timer will tell.
 */
static bool
rate_allows(SagaEndpoint *endpoint)
{
	SagaTime	now;

	if (endpoint->server->rate <= 0)
		return true;
	now = GetCurrentTimestamp();
	if (endpoint->rate_due > now)
	{
		saga_timer_set(&endpoint->rate_timer, endpoint->rate_due, rate_timer);
		return false;
	}
	endpoint->rate_due = Max(endpoint->rate_due, now - RATE_BURST) +
		(SagaTime) (SAGA_SECOND * saga_coordinators / endpoint->server->rate);
	return true;
}

/* With an open circuit nothing goes out, with a half-open one one call. */
static bool
circuit_allows(const SagaEndpoint *endpoint)
{
	return endpoint->connector->link_is_connection ||
		endpoint->circuit == SAGA_CIRCUIT_CLOSED ||
		(endpoint->circuit == SAGA_CIRCUIT_HALF_OPEN && endpoint->probe == NULL);
}

/*
 * Those that end prepared transactions go first, and have links of their own:
 * all others may be waiting for the very locks that they free.
 */
static SagaConnCall *
next_call(SagaEndpoint *endpoint)
{
	if (!dlist_is_empty(&endpoint->ending))
		return dlist_head_element(SagaConnCall, node, &endpoint->ending);
	if (!dlist_is_empty(&endpoint->queue) &&
		endpoint->nordinary < endpoint->server->pool_size)
		return dlist_head_element(SagaConnCall, node, &endpoint->queue);
	return NULL;
}

void
saga_endpoint_pump(SagaEndpoint *endpoint)
{
	SagaConnCall *call;

	/* sending and opening can fail at once and come back here */
	if (endpoint->pumping)
		return;
	endpoint->pumping = true;
	while ((call = next_call(endpoint)) != NULL && circuit_allows(endpoint))
	{
		if (!dlist_is_empty(&endpoint->idle))
		{
			SagaLink   *link = dlist_head_element(SagaLink, idle_node,
												  &endpoint->idle);

			if (!rate_allows(endpoint))
				break;
			dlist_delete(&link->idle_node);
			link->idle = false;
			send_call(endpoint, link, call);
		}
		else if (may_open(endpoint))
		{
			if (endpoint->connector->link_is_connection)
				pg_atomic_fetch_add_u64(&endpoint->stat->connects, 1);
			endpoint->connector->open(endpoint);
		}
		else
			break;
	}
	endpoint->pumping = false;
}

/* ---- the interface ---- */

static SagaConnCall *
new_call(const SagaRequest *request, SagaEndpoint *endpoint)
{
	/* most calls need no second block */
	MemoryContext context = AllocSetContextCreate(connector_context, "saga call",
												  0, 4 * 1024,
												  ALLOCSET_DEFAULT_MAXSIZE);
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaConnCall *call = palloc0(sizeof(SagaConnCall));

	call->context = context;
	call->endpoint = endpoint;
	call->request = *request;
	call->request.server = NULL;
	if (request->saga_name)
		call->request.saga_name = pstrdup(request->saga_name);
	if (request->step)
		call->request.step = pstrdup(request->step);
	if (request->purge_live)
		call->request.purge_live = pstrdup(request->purge_live);
	if (request->idempotency_key)
		call->request.idempotency_key = pstrdup(request->idempotency_key);
	if (request->correlation)
		call->request.correlation = pstrdup(request->correlation);
	if (request->callback_token)
		call->request.callback_token = pstrdup(request->callback_token);
	if (request->gid)
		call->request.gid = pstrdup(request->gid);
	if (request->tmpl && request->values)
	{
		int			n = request->tmpl->nparams;

		call->request.values = palloc0(sizeof(char *) * Max(n, 1));
		for (int i = 0; i < n; i++)
		{
			if (request->values[i])
				call->request.values[i] = pstrdup(request->values[i]);
		}
	}
	if (call->request.timeout_ms <= 0)
		call->request.timeout_ms = 30000;
	if (request->server->request_timeout_ms > 0)
		call->request.timeout_ms = Min(call->request.timeout_ms,
									   request->server->request_timeout_ms);
	MemoryContextSwitchTo(old);
	return call;
}

void
saga_connector_submit(const SagaRequest *request)
{
	SagaEndpoint *endpoint = find_endpoint(request->server);
	SagaConnCall *call = new_call(request, endpoint);
	TagEntry   *entry;
	bool		found;

	if (request->tag != 0)
	{
		entry = hash_search(tags, &request->tag, HASH_ENTER, &found);
		if (found)
			elog(ERROR, "tag " UINT64_FORMAT " of a call is in use", request->tag);
		entry->call = call;
	}
	call->ends = request->mode == SAGA_REQUEST_COMMIT_PREPARED ||
		request->mode == SAGA_REQUEST_ROLLBACK_PREPARED;
	dlist_push_tail(call->ends ? &endpoint->ending : &endpoint->queue,
					&call->node);
	endpoint->nqueued++;
	pg_atomic_fetch_add_u32(&endpoint->stat->queued, 1);

	if (endpoint->connector->answer_here &&
		endpoint->connector->answer_here(call))
	{
		finish_later(call);
		return;
	}
	if (endpoint->circuit == SAGA_CIRCUIT_OPEN &&
		endpoint->retry_at <= GetCurrentTimestamp())
		set_circuit(endpoint, SAGA_CIRCUIT_HALF_OPEN);
	if (endpoint->circuit == SAGA_CIRCUIT_OPEN)
	{
		answer_open_circuit(call);
		finish_later(call);
		return;
	}
	saga_timer_set(&call->timer,
				   GetCurrentTimestamp() + call->request.timeout_ms * INT64CONST(1000),
				   call_timer);
	inside_api++;
	saga_endpoint_pump(endpoint);
	inside_api--;
}

static SagaTime
next_due(void)
{
	if (!dlist_is_empty(&answered))
		return 0;
	return Min(saga_timers_next_due(),
			   saga_resolver_next_due(GetCurrentTimestamp()));
}

static bool
run_due(SagaTime now)
{
	bool		any = deliver_answered();

	saga_resolver_run_timers();
	any |= saga_timers_run(now);
	return deliver_answered() || any;
}

/* From saga_poll_wait(): do what needs no socket; how long may it sleep? */
static long
before_wait(void)
{
	SagaTime	now = GetCurrentTimestamp();
	SagaTime	due;

	if (run_due(now))
		return 0;
	due = next_due();
	if (due == SAGA_NEVER)
		return -1;
	/* rounded up, lest the last millisecond be spent turning round */
	return due <= now ? 0 : (long) Min((due - now + 999) / 1000, INT_MAX);
}

void
saga_connector_server_changed(void)
{
	HASH_SEQ_STATUS status;
	SagaEndpoint *endpoint;

	if (endpoints == NULL)
		return;

	/*
	 * One that is in use learns of its new settings by the next request.  For
	 * one that is not, perhaps because it was dropped, nothing is kept open.
	 */
	hash_seq_init(&status, endpoints);
	while ((endpoint = hash_seq_search(&status)) != NULL)
	{
		int			nidle = 0;
		dlist_iter	iter;

		dlist_foreach(iter, &endpoint->idle)
			nidle++;
		if (nidle == endpoint->nlinks && endpoint->nqueued == 0)
			close_idle(endpoint);
	}
}

/* Connections end, and calls on them stay unanswered: for the end of a process */
void
saga_connector_close_all(void)
{
	HASH_SEQ_STATUS status;
	SagaEndpoint *endpoint;

	if (endpoints == NULL)
		return;
	hash_seq_init(&status, endpoints);
	while ((endpoint = hash_seq_search(&status)) != NULL)
	{
		int			nbusy = 0;

		while (!dlist_is_empty(&endpoint->links))
		{
			SagaLink   *link = dlist_head_element(SagaLink, node,
												  &endpoint->links);

			if (link->call)
				nbusy++;
			drop_link(link);
		}
		pg_atomic_fetch_sub_u32(&endpoint->stat->in_flight, nbusy);
		pg_atomic_fetch_sub_u32(&endpoint->stat->queued, endpoint->nqueued);
		saga_timer_clear(&endpoint->timer);
		saga_timer_clear(&endpoint->rate_timer);
	}
	saga_resolver_close();
	saga_poll_before_wait(NULL);
	MemoryContextDelete(connector_context);
	connector_context = NULL;
	endpoints = NULL;
	tags = NULL;
	saga_timers_end();
	inside_api = 0;
	dlist_init(&answered);
}

static void
close_at_exit(int code, Datum arg)
{
	saga_connector_close_all();
}

void
saga_connector_init(const SagaEpoch *e, int max_bytes,
					SagaAnswerCallback callback, void *arg)
{
	static bool registered = false;
	HASHCTL		ctl;

	epoch = *e;
	max_result_bytes = max_bytes;
	answer_callback = callback;
	answer_arg = arg;
	if (connector_context)
		return;
	saga_poll_init();
	connector_context = AllocSetContextCreate(TopMemoryContext,
											  "saga connector",
											  ALLOCSET_DEFAULT_SIZES);
	answer_context = AllocSetContextCreate(connector_context, "saga answers",
										   ALLOCSET_DEFAULT_SIZES);
	saga_timers_begin(connector_context);
	memset(&ctl, 0, sizeof(ctl));
	ctl.hcxt = connector_context;
	ctl.keysize = sizeof(SagaEndpointKey);
	ctl.entrysize = sizeof(SagaEndpoint);
	endpoints = hash_create("saga endpoints", 16, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(TagEntry);
	tags = hash_create("saga calls", 256, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	saga_poll_before_wait(before_wait);
	if (!registered)
		before_shmem_exit(close_at_exit, (Datum) 0);
	registered = true;
}
