/*
 * connector_libpq.c
 *		One connection to a PostgreSQL participant: name, socket, log-in,
 *		attaching with the epoch, and the stream of messages after that.
 *
 * Owns PGconn objects.  Called by connector.c, which decides when there is a
 * connection, and by poll.c with events; what a call consists of is in
 * connector_call.c.  Never blocks; touches no table; uses neither PQfn nor
 * large objects, whose replies a hostile server could abuse.  The password is
 * handed to libpq and appears nowhere else.
 */
#include "postgres.h"

#include <ctype.h>
#include <sys/ioctl.h>

#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "connector_libpq.h"

#define IDLE_FOR			(60 * SAGA_SECOND)

#define PREPARE_HINT \
	"Run SELECT saga.prepare_participant('%s'), or have the script it prints with execute => false run there."

static void link_ready(SagaPollEntry *entry, uint32 events);
static void start_connect(SagaPqLink *link);
static void start_setup(SagaPqLink *link);

static const char *
server_name(const SagaPqLink *link)
{
	return link->link.endpoint->server->name;
}

/* ---- faults ---- */

/*
 * The SQLSTATE in a verbose message of libpq ("FATAL:  28P01: ..."): for a
 * log-in that failed there is no other way to it.
 */
static bool
find_sqlstate(const char *message, char *sqlstate)
{
	bool		found = false;

	for (const char *p = strstr(message, ":  "); p; p = strstr(p + 3, ":  "))
	{
		bool		good = true;

		for (int i = 3; i < 8 && good; i++)
			good = isdigit((unsigned char) p[i]) ||
				(p[i] >= 'A' && p[i] <= 'Z');
		if (good && p[8] == ':')
		{
			strlcpy(sqlstate, p + 3, 6);
			found = true;		/* of several hosts, the last one's */
		}
	}
	return found;
}

/* One line, without libpq's note of the source file. */
static void
copy_message(char *out, size_t size, const char *message)
{
	size_t		n = 0;

	while (*message && n < size - 1)
	{
		if (strncmp(message, "LOCATION:", 9) == 0)
			message += strcspn(message, "\n");
		else if (!isspace((unsigned char) *message))
			out[n++] = *message++;
		else
		{
			if (n > 0 && out[n - 1] != ' ')
				out[n++] = ' ';
			message++;
		}
	}
	while (n > 0 && out[n - 1] == ' ')
		n--;
	out[n] = '\0';
}

/* Give the link up before it was of use. */
static void
opening_failed(SagaPqLink *link, const SagaFault *fault)
{
	saga_endpoint_link_gone(&link->link, fault);
}

void
saga_connect_fault(PGconn *conn, SagaFault *fault)
{
	char		sqlstate[6] = "08001";
	char		message[1024];

	copy_message(message, sizeof(message), PQerrorMessage(conn));
	if (!find_sqlstate(PQerrorMessage(conn), sqlstate) &&
		PQconnectionNeedsPassword(conn))
		strlcpy(sqlstate, "28P01", sizeof(sqlstate));
	saga_fault_set(fault, saga_classify_sqlstate(sqlstate, NULL), sqlstate,
				   message, NULL, NULL);
	/* of an attempt to connect nothing is in doubt */
	if (fault->kind != SAGA_ANSWER_BROKEN)
		fault->kind = SAGA_ANSWER_TRANSIENT;
}

static void
connect_failed(SagaPqLink *link)
{
	SagaFault	fault;

	saga_connect_fault(link->conn, &fault);
	opening_failed(link, &fault);
}

static void
open_timed_out(SagaTimer *timer)
{
	SagaPqLink *link = SAGA_CONTAINER(SagaPqLink, timer, timer);
	SagaFault	fault;
	char		message[256];

	snprintf(message, sizeof(message), "could not connect to server \"%s\" within %d ms",
			 server_name(link), link->link.endpoint->server->connect_timeout_ms);
	saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08001", message, NULL, NULL);
	opening_failed(link, &fault);
}

/* ---- names ---- */

/* The i-th of a comma-separated list; a list of one stands for all. */
static char *
list_element(const char *list, int i)
{
	const char *end = list + strcspn(list, ",");

	if (*end == '\0')
		return pstrdup(list);
	while (i-- > 0 && *end == ',')
	{
		list = end + 1;
		end = list + strcspn(list, ",");
	}
	return pnstrdup(list, end - list);
}

static void
name_resolved(void *arg, int n, const char *const *addresses,
			  const char *fault_text)
{
	SagaLinkHost *host = arg;
	SagaPqLink *link = host->link;

	host->resolve = NULL;
	for (int i = 0; i < n && i < SAGA_LINK_ADDRESSES; i++)
	{
		host->addresses[i] = MemoryContextStrdup(link->context, addresses[i]);
		host->naddresses = i + 1;
	}
	if (fault_text)
		snprintf(link->resolve_fault, sizeof(link->resolve_fault),
				 "could not resolve host \"%s\" of server \"%s\": %s",
				 host->name, server_name(link), fault_text);
	if (--link->unresolved == 0)
		start_connect(link);
}

/* Split host and port lists, and start to resolve what has to be. */
static void
start_resolving(SagaPqLink *link)
{
	const SagaServer *server = link->link.endpoint->server;
	const char *hosts = saga_server_value(server, "host");
	const char *ports = saga_server_value(server, "port");
	MemoryContext old = MemoryContextSwitchTo(link->context);

	/* with hostaddr libpq looks nothing up, and without a host there is none */
	if (hosts && saga_server_value(server, "hostaddr") == NULL)
	{
		int			n = 1;

		for (const char *p = hosts; *p; p++)
			n += *p == ',';
		link->nhosts = Min(n, SAGA_LINK_HOSTS);
		link->hosts = palloc0(sizeof(SagaLinkHost) * link->nhosts);
		for (int i = 0; i < link->nhosts; i++)
		{
			link->hosts[i].link = link;
			link->hosts[i].name = list_element(hosts, n == 1 ? 0 : i);
			link->hosts[i].port = ports ? list_element(ports, i) : NULL;
		}
	}
	MemoryContextSwitchTo(old);

	/* one is kept back: answers may come before all questions are asked */
	link->unresolved = 1;
	for (int i = 0; i < link->nhosts; i++)
	{
		SagaLinkHost *host = &link->hosts[i];

		if (saga_resolve_is_literal(host->name))
			continue;
		link->unresolved++;
		host->resolve = saga_resolve_start(host->name, name_resolved, host);
	}
	if (--link->unresolved == 0)
		start_connect(link);
}

/* ---- connecting ---- */

/*
 * host, hostaddr and port with one element for each address found, so that
 * libpq tries them all but looks nothing up.  False if there is none.
 */
static bool
address_lists(SagaPqLink *link, StringInfo hosts, StringInfo addrs,
			  StringInfo ports, bool *any_resolved)
{
	int			n = 0;

	*any_resolved = false;
	for (int i = 0; i < link->nhosts; i++)
	{
		SagaLinkHost *host = &link->hosts[i];
		bool		literal = saga_resolve_is_literal(host->name);

		for (int j = 0; j < (literal ? 1 : host->naddresses); j++)
		{
			const char *sep = n++ > 0 ? "," : "";

			appendStringInfo(hosts, "%s%s", sep, host->name);
			appendStringInfo(addrs, "%s%s", sep,
							 literal ? "" : host->addresses[j]);
			appendStringInfo(ports, "%s%s", sep, host->port ? host->port : "");
			*any_resolved |= !literal;
		}
	}
	return n > 0 || link->nhosts == 0;
}

/* Of all warnings, the one that makes the tag COMMIT a lie. */
static void
take_notice(void *arg, const PGresult *res)
{
	SagaPqLink *link = arg;
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	if (sqlstate && strcmp(sqlstate, "25P01") == 0)
		link->no_transaction = true;
}

static PGconn *
begin_connect(SagaPqLink *link, StringInfo hosts, StringInfo addrs,
			  StringInfo ports, bool any_resolved)
{
	const SagaServer *server = link->link.endpoint->server;
	const char **keywords = palloc0(sizeof(char *) * (server->npairs + 2));
	const char **values = palloc0(sizeof(char *) * (server->npairs + 2));
	PGconn	   *conn;
	int			n = server->npairs;

	for (int i = 0; i < n; i++)
	{
		keywords[i] = server->keywords[i];
		values[i] = server->values[i];
		if (any_resolved && strcmp(keywords[i], "host") == 0)
			values[i] = hosts->data;
		else if (any_resolved && strcmp(keywords[i], "port") == 0)
			values[i] = ports->data;
	}
	if (any_resolved)
	{
		keywords[n] = "hostaddr";
		values[n] = addrs->data;
	}
	conn = PQconnectStartParams(keywords, values, false);
	pfree(keywords);
	pfree(values);
	return conn;
}

/* Watch the socket libpq has now: it opens one for each address it tries. */
static void
watch(SagaPqLink *link, uint32 events)
{
	int			fd = PQsocket(link->conn);

	if (fd < 0)
	{
		saga_poll_remove(&link->poll);
		return;
	}
	if (link->poll.fd != fd)
	{
		saga_poll_remove(&link->poll);
		link->poll.fd = fd;
		link->poll.events = events;
		saga_poll_add(&link->poll);
	}
	else if (link->state == SAGA_LINK_CONNECTING || link->poll.events != events)
		saga_poll_modify(&link->poll, events);
}

static void
start_connect(SagaPqLink *link)
{
	SagaEndpoint *endpoint = link->link.endpoint;
	MemoryContext old = MemoryContextSwitchTo(link->context);
	StringInfoData hosts,
				addrs,
				ports;
	bool		any_resolved;
	SagaFault	fault;

	initStringInfo(&hosts);
	initStringInfo(&addrs);
	initStringInfo(&ports);
	link->state = SAGA_LINK_CONNECTING;
	link->link.fingerprint = endpoint->server->fingerprint;
	link->prepared = endpoint->server->prepared;
	link->statement_timeout_ms = endpoint->server->statement_timeout_ms;
	link->session_timeout_ms = link->statement_timeout_ms > 0 ?
		link->statement_timeout_ms : SAGA_STATEMENT_TIMEOUT;
	if (!address_lists(link, &hosts, &addrs, &ports, &any_resolved))
	{
		MemoryContextSwitchTo(old);
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08001",
					   link->resolve_fault, NULL, NULL);
		opening_failed(link, &fault);
		return;
	}
	link->fd_reserved = AcquireExternalFD();
	if (link->fd_reserved)
		link->conn = begin_connect(link, &hosts, &addrs, &ports, any_resolved);
	MemoryContextSwitchTo(old);
	if (link->conn == NULL)
	{
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "53000",
					   link->fd_reserved ? "out of memory" :
					   "too many files and sockets are open in this process",
					   NULL, link->fd_reserved ? NULL :
					   "Increase max_files_per_process.");
		opening_failed(link, &fault);
		return;
	}
	PQsetNoticeReceiver(link->conn, take_notice, link);
	PQsetErrorVerbosity(link->conn, PQERRORS_VERBOSE);
	if (PQstatus(link->conn) == CONNECTION_BAD)
	{
		connect_failed(link);
		return;
	}
	watch(link, SAGA_POLL_WRITE);
}

bool
saga_connection_allowed(PGconn *conn, const SagaServer *server,
						SagaFault *fault)
{
	/* a password that was given but not asked for proves nothing */
	if (server->password_required && !PQconnectionUsedPassword(conn))
	{
		saga_fault_set(fault, SAGA_ANSWER_BROKEN, "2F003",
					   "password is required",
					   "The participant let the server in without using the password of the user mapping.",
					   "Change its authentication method, or have a superuser set password_required 'false' in the user mapping.");
		return false;
	}
	if (PQserverVersion(conn) < SAGA_OLDEST_SERVER)
	{
		saga_fault_set(fault, SAGA_ANSWER_BROKEN, "0A000",
					   "a participant must be PostgreSQL 12 or later", NULL, NULL);
		return false;
	}
	return true;
}

static void
poll_connect(SagaPqLink *link)
{
	SagaEndpoint *endpoint = link->link.endpoint;
	SagaFault	fault;

	switch (PQconnectPoll(link->conn))
	{
		case PGRES_POLLING_READING:
			watch(link, SAGA_POLL_READ);
			return;
		case PGRES_POLLING_WRITING:
			watch(link, SAGA_POLL_WRITE);
			return;
		case PGRES_POLLING_OK:
			break;
		default:
			watch(link, 0);
			connect_failed(link);
			return;
	}
	watch(link, SAGA_POLL_READ);

	if (!saga_connection_allowed(link->conn, endpoint->server, &fault))
	{
		opening_failed(link, &fault);
		return;
	}
	if (PQsetnonblocking(link->conn, 1) != 0 ||
		!PQenterPipelineMode(link->conn))
	{
		connect_failed(link);
		return;
	}
	start_setup(link);
}

/* ---- messages ---- */

void
saga_link_begin_exchange(SagaPqLink *link, SagaLinkState state)
{
	link->state = state;
	link->nitems = 0;
	link->current = 0;
	link->current_answered = false;
	link->nulls = 0;
	link->received = 0;
	link->failed = false;
	link->fatal = false;
	link->uncertain = false;
	link->ran = false;
	link->committed = false;
	link->no_transaction = false;
}

static void
add_item(SagaPqLink *link, SagaItem item, int sent)
{
	Assert(link->nitems < SAGA_LINK_ITEMS);
	if (!sent)
		link->lost = true;
	link->items[link->nitems++] = item;
}

void
saga_link_query(SagaPqLink *link, SagaItem item, const char *sql,
				int nparams, const char *const *values)
{
	add_item(link, item,
			 PQsendQueryParams(link->conn, sql, nparams, NULL, values,
							   NULL, NULL, 0));
}

void
saga_link_execute(SagaPqLink *link, SagaItem item, const char *name,
				  int nparams, const char *const *values)
{
	add_item(link, item,
			 PQsendQueryPrepared(link->conn, name, nparams, values,
								 NULL, NULL, 0));
}

void
saga_link_parse(SagaPqLink *link, SagaItem item, const char *name,
				const char *sql, int nparams, const Oid *types)
{
	add_item(link, item,
			 PQsendPrepare(link->conn, name, sql, nparams, types));
}

void
saga_link_describe(SagaPqLink *link, const char *name)
{
	add_item(link, SAGA_ITEM_DESCRIBE,
			 PQsendDescribePrepared(link->conn, name));
}

void
saga_link_sync(SagaPqLink *link)
{
	add_item(link, SAGA_ITEM_SYNC, PQpipelineSync(link->conn));
}

static void
link_lost(SagaPqLink *link)
{
	SagaFault	fault;
	char		message[1024];

	watch(link, 0);
	saga_poll_remove(&link->poll);
	copy_message(message, sizeof(message), PQerrorMessage(link->conn));
	switch (link->state)
	{
		case SAGA_LINK_IDLE:
			/* a restart over there: the next call connects again */
			saga_endpoint_link_gone(&link->link, NULL);
			return;
		case SAGA_LINK_DESCRIBING:
		case SAGA_LINK_RUNNING:
			saga_call_lost(link, message);
			return;
		default:
			break;
	}
	if (link->failed)
		fault = link->fault;
	else
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08006", message,
					   NULL, NULL);
	opening_failed(link, &fault);
}

void
saga_link_flush(SagaPqLink *link)
{
	int			rc = link->lost ? -1 : PQflush(link->conn);

	if (rc < 0)
		link_lost(link);
	else
		watch(link, rc == 0 ? SAGA_POLL_READ : SAGA_POLL_READ | SAGA_POLL_WRITE);
}

/* ---- setting up a session ---- */

void
saga_link_parse_own(SagaPqLink *link)
{
	char	   *run;

	saga_link_parse(link, SAGA_ITEM_OTHER, "saga_begin",
					"BEGIN ISOLATION LEVEL READ COMMITTED", 0, NULL);
	saga_link_parse(link, SAGA_ITEM_OTHER, "saga_set",
					"SELECT pg_catalog.set_config('statement_timeout', $1, true)",
					0, NULL);
	run = psprintf("SELECT saga_participant.run(%s, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
				   link->epoch_args);
	saga_link_parse(link, SAGA_ITEM_OTHER, "saga_run", run, 0, NULL);
	pfree(run);
}

static char *
quoted(SagaPqLink *link, const char *text)
{
	char	   *literal = PQescapeLiteral(link->conn, text, strlen(text));
	char	   *copy = pstrdup(literal ? literal : "NULL");

	PQfreemem(literal);
	return copy;
}

static void
start_setup(SagaPqLink *link)
{
	const SagaEpoch *epoch = saga_connector_epoch();
	MemoryContext old = MemoryContextSwitchTo(link->context);
	char	   *attach;

	link->epoch_args = psprintf("%s, %d, " INT64_FORMAT ", %s",
								quoted(link, epoch->coordinator),
								epoch->timeline, epoch->counter,
								quoted(link, epoch->nonce));
	attach = psprintf("SELECT saga_participant.attach(%s, %s)",
					  link->epoch_args, link->prepared ? "true" : "false");
	saga_link_begin_exchange(link, SAGA_LINK_SETUP);
	saga_link_query(link, SAGA_ITEM_OTHER, attach, 0, NULL);
	saga_link_sync(link);
	if (link->prepared)
	{
		saga_link_parse_own(link);
		saga_link_sync(link);
	}
	MemoryContextSwitchTo(old);
	saga_link_flush(link);
}

static void
check_idle(SagaTimer *timer)
{
	SagaPqLink *link = SAGA_CONTAINER(SagaPqLink, timer, timer);
	SagaTime	now = GetCurrentTimestamp();

	if (!link->link.idle)
		saga_timer_set(timer, now + IDLE_FOR, check_idle);
	else if (link->idle_since + IDLE_FOR > now)
		saga_timer_set(timer, link->idle_since + IDLE_FOR, check_idle);
	else
		saga_endpoint_link_gone(&link->link, NULL);
}

static void
setup_done(SagaPqLink *link)
{
	SagaEndpoint *endpoint = link->link.endpoint;
	SagaFault	fault;

	if (link->failed)
	{
		fault = link->fault;
		opening_failed(link, &fault);
		return;
	}
	link->state = SAGA_LINK_IDLE;
	link->idle_since = GetCurrentTimestamp();
	saga_timer_set(&link->timer, link->idle_since + IDLE_FOR, check_idle);
	saga_endpoint_works(endpoint);
	saga_endpoint_link_free(&link->link);
	saga_endpoint_pump(endpoint);
}

void
saga_link_call_done(SagaPqLink *link)
{
	SagaEndpoint *endpoint = link->link.endpoint;
	SagaConnCall *call = link->link.call;
	PGnotify   *notify;
	SagaFault	fault;

	link->link.call = NULL;
	if (link->fatal)
	{
		saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, call->answer.sqlstate,
					   call->answer.message, NULL, NULL);
		saga_call_finish(call);
		saga_endpoint_link_gone(&link->link, &fault);
		return;
	}
	saga_endpoint_works(endpoint);
	while ((notify = PQnotifies(link->conn)) != NULL)
		PQfreemem(notify);
	link->state = SAGA_LINK_IDLE;
	link->idle_since = GetCurrentTimestamp();
	if (PQtransactionStatus(link->conn) == PQTRANS_IDLE)
	{
		saga_endpoint_link_free(&link->link);
		saga_call_finish(call);
		saga_endpoint_pump(endpoint);
	}
	else
	{
		saga_call_finish(call);
		saga_endpoint_link_gone(&link->link, NULL);
	}
}

/* ---- results ---- */

/* What a user can do about an error the participant has no hint for. */
static const char *
own_hint(SagaPqLink *link, const char *sqlstate, const char *message,
		 char *buf, size_t size)
{
	if (strcmp(sqlstate, "42P18") == 0 || strcmp(sqlstate, "42725") == 0)
		return "Write a cast after the parameter, such as :name::integer.";
	if (message && strstr(message, "saga_participant") &&
		(strncmp(sqlstate, "3F", 2) == 0 || strncmp(sqlstate, "42", 2) == 0))
	{
		snprintf(buf, size, PREPARE_HINT, server_name(link));
		return buf;
	}
	return NULL;
}

void
saga_link_note_error(SagaPqLink *link, SagaItem item, const PGresult *res)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	SagaAnswerKind kind;
	char		buf[256];

	if (sqlstate == NULL || strlen(sqlstate) != 5)
	{
		link->lost = true;		/* libpq's own: the connection broke */
		return;
	}
	if (link->failed)
		return;
	link->failed = true;
	strlcpy(link->sqlstate, sqlstate, sizeof(link->sqlstate));
	if (severity && strcmp(severity, "ERROR") != 0)
	{
		link->fatal = true;
		link->uncertain = item == SAGA_ITEM_COMMIT;
	}
	if (hint == NULL)
		hint = own_hint(link, sqlstate, message, buf, sizeof(buf));
	kind = saga_classify_sqlstate(sqlstate, NULL);
	if (link->link.call)
		saga_call_error(link->link.call, kind, sqlstate, message, detail, hint);
	else
		saga_fault_set(&link->fault, kind, sqlstate, message, detail, hint);
}

static void
exchange_done(SagaPqLink *link)
{
	switch (link->state)
	{
		case SAGA_LINK_SETUP:
			setup_done(link);
			break;
		case SAGA_LINK_DESCRIBING:
			saga_call_described(link);
			break;
		case SAGA_LINK_RUNNING:
			saga_call_ran(link);
			break;
		default:
			break;
	}
}

/* Take the results that are there.  False: the stream is not what it must be. */
static bool
take_results(SagaPqLink *link)
{
	while (link->current < link->nitems && !PQisBusy(link->conn))
	{
		PGresult   *res = PQgetResult(link->conn);
		SagaItem	item = link->items[link->current];
		ExecStatusType status;

		if (res == NULL)
		{
			if (++link->nulls > 2)
				return false;
			if (link->current_answered)
				link->current++;
			link->current_answered = false;
			continue;
		}
		link->nulls = 0;
		status = PQresultStatus(res);
		if ((status == PGRES_PIPELINE_SYNC) != (item == SAGA_ITEM_SYNC))
		{
			/* an error without an SQLSTATE is libpq's: the end of it */
			PQclear(res);
			return false;
		}
		if (status == PGRES_PIPELINE_SYNC)
			link->current++;
		else
		{
			link->current_answered = true;
			if (status == PGRES_FATAL_ERROR)
				saga_link_note_error(link, item, res);
			if (link->link.call)
				saga_call_result(link, item, res);
		}
		PQclear(res);
		if (link->lost)
			return false;
	}
	return true;
}

/* How much a reply may have: our results are bounded, so is all else. */
static bool
read_input(SagaPqLink *link)
{
	int			waiting = 0;

	if (ioctl(link->poll.fd, FIONREAD, &waiting) == 0 && waiting > 0)
		link->received += waiting;
	if (link->received > (uint64) saga_connector_max_result() * 4 + 1024 * 1024)
	{
		link->lost = true;
		return false;
	}
	return PQconsumeInput(link->conn) != 0;
}

static void
link_ready(SagaPollEntry *entry, uint32 events)
{
	SagaPqLink *link = SAGA_CONTAINER(SagaPqLink, poll, entry);
	bool		alive = true;

	if (link->state == SAGA_LINK_CONNECTING)
	{
		poll_connect(link);
		return;
	}
	if (events & SAGA_POLL_READ)
		alive = read_input(link);

	/* before a connection broke it may have said why */
	if (link->state == SAGA_LINK_IDLE)
		(void) PQisBusy(link->conn);
	else if (!take_results(link))
		alive = false;
	if (link->state != SAGA_LINK_IDLE && link->current == link->nitems &&
		!link->lost)
	{
		link->fatal |= !alive;
		exchange_done(link);
		return;
	}
	if (!alive || PQstatus(link->conn) == CONNECTION_BAD)
		link_lost(link);
	else if (events & SAGA_POLL_WRITE)
		saga_link_flush(link);
}

/* ---- for connector.c ---- */

static void
open_link(SagaEndpoint *endpoint)
{
	MemoryContext context = AllocSetContextCreate(saga_connector_context(),
												  "saga link",
												  ALLOCSET_SMALL_SIZES);
	SagaPqLink *link = MemoryContextAllocZero(context, sizeof(SagaPqLink));

	link->context = context;
	link->poll.fd = -1;
	link->poll.ready = link_ready;
	saga_endpoint_link_add(endpoint, &link->link);
	saga_timer_set(&link->timer,
				   GetCurrentTimestamp() +
				   endpoint->server->connect_timeout_ms * INT64CONST(1000),
				   open_timed_out);
	start_resolving(link);
}

static void
send_call(SagaLink *base, SagaConnCall *call)
{
	saga_call_send((SagaPqLink *) base);
}

static void
close_link(SagaLink *base)
{
	SagaPqLink *link = (SagaPqLink *) base;

	saga_timer_clear(&link->timer);
	saga_poll_remove(&link->poll);
	for (int i = 0; i < link->nhosts; i++)
	{
		if (link->hosts[i].resolve)
			saga_resolve_forget(link->hosts[i].resolve);
	}
	if (link->conn)
		PQfinish(link->conn);
	if (link->fd_reserved)
		ReleaseExternalFD();
	MemoryContextDelete(link->context);
}

const SagaConnector saga_libpq_connector = {
	.link_is_connection = true,
	.grace = 1 * SAGA_SECOND,	/* it ends the statement at its time-out */
	.open = open_link,
	.send = send_call,
	.close = close_link,
};
