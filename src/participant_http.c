/*
 * participant_http.c
 *		Asking an HTTP service from a session whether it can be called.
 *
 * Called by participant.c.  Makes one harmless request by the very connector
 * that a coordinator uses, in the calling backend, so that names, addresses,
 * TLS and credentials are judged in the same way.  Waits within the server's
 * time-outs and open to cancel; whatever happens, all is closed at the end.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "connector.h"
#include "guc.h"
#include "participant.h"

#define CHECK_TIMEOUT	10000	/* ms */

typedef struct Asked
{
	MemoryContext context;
	bool		answered;
	SagaHttpReach *reach;
} Asked;

static char *
copied(const char *text)
{
	return text ? pstrdup(text) : NULL;
}

static void
take_answer(const SagaAnswer *answer, void *arg)
{
	Asked	   *asked = arg;
	MemoryContext old = MemoryContextSwitchTo(asked->context);
	SagaHttpReach *reach = asked->reach;

	asked->answered = true;
	reach->latency = answer->latency;
	if (answer->http_status > 0)
		reach->status = answer->http_status;
	else if (answer->has_sqlstate && strncmp(answer->sqlstate, "H0", 2) == 0)
		reach->status = atoi(answer->sqlstate + 2);
	reach->message = copied(answer->message);
	reach->detail = copied(answer->detail);
	reach->hint = copied(answer->hint);
	MemoryContextSwitchTo(old);
}

static void
submit(const SagaServer *server, const SagaTemplate *tmpl)
{
	SagaRequest request;

	memset(&request, 0, sizeof(request));
	request.tag = 1;
	request.mode = SAGA_REQUEST_RUN;
	request.server = server;
	request.saga_name = "check_participant";
	request.step = "check";
	request.op = SAGA_OP_ACTION;
	request.tmpl = tmpl;
	request.attempt = 1;
	request.timeout_ms = CHECK_TIMEOUT;
	saga_connector_submit(&request);
}

void
saga_http_reach(const SagaServer *server, SagaHttpReach *reach)
{
	static char *root[] = {"/"};
	static char *nothing[] = {""};
	const char *base = saga_server_value(server, "base");
	SagaTemplate tmpl = {.kind = SAGA_TEMPLATE_HTTP,.method = "HEAD"};
	SagaEpoch	none;
	Asked		asked = {CurrentMemoryContext, false, reach};

	/* the url itself; without a path it needs one */
	tmpl.path = strchr(strstr(base, "://") + 3, '/') ? nothing : root;
	memset(reach, 0, sizeof(*reach));
	memset(&none, 0, sizeof(none));
	saga_connector_init(&none, saga_max_payload, take_answer, &asked);
	PG_TRY();
	{
		submit(server, &tmpl);
		while (!asked.answered)
		{
			(void) saga_poll_wait(CHECK_TIMEOUT,
								  saga_wait_event("SagaParticipantAnswer"));
			CHECK_FOR_INTERRUPTS();
		}
	}
	PG_FINALLY();
	{
		saga_connector_close_all();
	}
	PG_END_TRY();
}
