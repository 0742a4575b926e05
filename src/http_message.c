/*
 * http_message.c
 *		What stands in a request to an HTTP service, and what its answer means.
 *
 * Called by connector_http.c.  No I/O.  Every byte of an answer is another's
 * word: it is checked, bounded, and rid of our credentials before it is kept.
 */
#include "postgres.h"

#include <ctype.h>

#include "common/base64.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "connector_http.h"

#define EXCERPT			500		/* bytes of a body in a message */
#define SECRET_ERROR	4		/* shorter ones cannot be told from text */
#define SECRET_RESULT	8
#define MAX_RETRY_AFTER (24 * INT64CONST(3600) * SAGA_SECOND)

/* ---- headers ---- */

typedef struct Headers
{
	SagaHttpRequest *request;
	bool		failed;			/* out of memory */
} Headers;

/* Printable ASCII as it is, all else percent-encoded: it stays one line. */
static char *
header_text(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
	{
		if (*p > ' ' && *p < 0x7f && *p != '%')
			appendStringInfoChar(&out, *p);
		else
			appendStringInfo(&out, "%%%02X", *p);
	}
	return out.data;
}

static void
add_line(Headers *headers, const char *line)
{
	struct curl_slist *longer = curl_slist_append(headers->request->headers, line);

	if (longer == NULL)
		headers->failed = true;
	else
		headers->request->headers = longer;
}

static void
add_header(Headers *headers, const char *name, const char *value)
{
	if (value != NULL)
		add_line(headers, psprintf("%s: %s", name, header_text(value)));
}

static void
add_secret(Headers *headers, const char *name, const char *value,
		   const char *secret)
{
	add_line(headers, psprintf("%s: %s", name, value));
	headers->request->secrets = lappend(headers->request->secrets,
										pstrdup(secret));
}

static void
add_basic(Headers *headers, const char *user, const char *password)
{
	char	   *plain = psprintf("%s:%s", user, password);
	int			size = pg_b64_enc_len(strlen(plain)) + 1;
	char	   *encoded = palloc0(size);
	int			n = pg_b64_encode((const void *) plain, strlen(plain), encoded, size - 1);

	if (n < 0)
		elog(ERROR, "could not encode credentials");
	encoded[n] = '\0';
	add_secret(headers, "Authorization", psprintf("Basic %s", encoded), encoded);
	headers->request->secrets = lappend(headers->request->secrets,
										pstrdup(password));
}

static void
add_credentials(Headers *headers, const SagaServer *server)
{
	const char *bearer = saga_server_value(server, "bearer");
	const char *user = saga_server_value(server, "user");
	const char *password = saga_server_value(server, "password");

	if (bearer)
		add_secret(headers, "Authorization", psprintf("Bearer %s", bearer), bearer);
	else if (user)
		add_basic(headers, user, password ? password : "");
	for (int i = 0; i < server->npairs; i++)
	{
		if (strncmp(server->keywords[i], "header_", 7) == 0)
			add_secret(headers, server->keywords[i] + 7, server->values[i],
					   server->values[i]);
	}
}

static bool
is_hex(const char *text, int n)
{
	bool		zero = true;

	for (int i = 0; i < n; i++)
	{
		if (!isxdigit((unsigned char) text[i]))
			return false;
		zero &= text[i] == '0';
	}
	return !zero;
}

/*
 * 32 hexadecimal digits: those of a correlation that is itself a trace id, a
 * traceparent or a UUID, else made of it; without one the saga's id.
 */
static void
trace_id(const SagaRequest *request, char *out)
{
	const char *text = request->correlation;
	char		digits[33];
	int			n = 0;

	if (text == NULL)
	{
		for (int i = 0; i < UUID_LEN; i++)
			sprintf(out + 2 * i, "%02x", request->saga_id.data[i]);
		return;
	}
	if (strlen(text) == 55 && strncmp(text, "00-", 3) == 0)
		text += 3;
	for (const char *p = text; *p && n < 32; p++)
	{
		if (*p != '-')
			digits[n++] = pg_tolower((unsigned char) *p);
	}
	digits[n] = '\0';
	if (n == 32 && is_hex(digits, 32))
		strlcpy(out, digits, 33);
	else
	{
		const unsigned char *bytes = (const unsigned char *) request->correlation;
		int			length = strlen(request->correlation);

		sprintf(out, "%016llx%016llx",
				(unsigned long long) hash_bytes_extended(bytes, length, 1),
				(unsigned long long) (hash_bytes_extended(bytes, length, 2) | 1));
	}
}

static void
add_trace(Headers *headers, const SagaRequest *request)
{
	char		trace[33];
	const char *key = request->idempotency_key ? request->idempotency_key : "";
	uint64		span = hash_bytes_extended((const unsigned char *) key,
										   strlen(key), request->attempt) | 1;

	trace_id(request, trace);
	add_line(headers, psprintf("traceparent: 00-%s-%016llx-01", trace,
							   (unsigned long long) span));
}

static char *
uuid_string(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static bool
add_headers(SagaHttpRequest *request, const SagaRequest *call,
			const SagaServer *server)
{
	Headers		headers = {request, false};

	add_line(&headers, "Accept: application/json");
	add_line(&headers, "User-Agent: saga/1.0");
	/* nobody waits for "100 Continue" */
	add_line(&headers, "Expect:");
	add_line(&headers, request->body ? "Content-Type: application/json" :
			 "Content-Type:");	/* none, lest libcurl adds one */
	add_credentials(&headers, server);
	add_header(&headers, "Idempotency-Key", call->idempotency_key);
	add_trace(&headers, call);
	add_header(&headers, "Saga-Id", uuid_string(&call->saga_id));
	add_header(&headers, "Saga-Name", call->saga_name);
	add_header(&headers, "Saga-Step", call->step);
	add_line(&headers, psprintf("Saga-Attempt: %d", call->attempt));
	add_header(&headers, "Saga-Correlation", call->correlation);
	add_header(&headers, "Saga-Callback-Token", call->callback_token);
	return !headers.failed;
}

bool
saga_http_request(SagaConnCall *call, SagaHttpRequest *request)
{
	const SagaServer *server = call->endpoint->server;
	const SagaTemplate *tmpl = call->request.tmpl;
	const char *problem;
	char	   *path = saga_http_path(tmpl, call->request.values, &problem);

	memset(request, 0, sizeof(*request));
	if (path == NULL)
	{
		saga_call_error(call, SAGA_ANSWER_DECLINED, "22023", problem,
						"The request was not sent.", NULL);
		return false;
	}
	request->method = tmpl->method;
	request->url = psprintf("%s%s", saga_server_value(server, "base"), path);
	request->body = saga_http_body(tmpl, call->request.values);
	request->safe = !call->request.at_most_once &&
		(strcmp(tmpl->method, "GET") == 0 || strcmp(tmpl->method, "HEAD") == 0 ||
		 strcmp(tmpl->method, "OPTIONS") == 0);
	if (add_headers(request, &call->request, server))
		return true;
	curl_slist_free_all(request->headers);
	request->headers = NULL;
	saga_call_error(call, SAGA_ANSWER_TRANSIENT, "53200", "out of memory",
					"The request was not sent.", NULL);
	return false;
}

/* ---- answers ---- */

/* A service may echo what it was sent: our credentials end here. */
static void
redact(char *body, size_t size, const SagaHttpRequest *request, size_t shortest)
{
	ListCell   *lc;

	foreach(lc, request->secrets)
	{
		const char *secret = lfirst(lc);
		size_t		length = strlen(secret);
		char	   *end = body + size;

		if (length < shortest)
			continue;
		for (char *p = body; (p = memmem(p, end - p, secret, length)) != NULL; p += length)
			memset(p, '*', length);
	}
}

/* The beginning of a text on one line, or NULL. */
static char *
excerpt(const char *text, size_t size)
{
	StringInfoData out;
	size_t		used = 0;
	bool		space = false;

	if (text == NULL)
		return NULL;
	initStringInfo(&out);
	for (; used < size && out.len < EXCERPT; used++)
	{
		unsigned char c = text[used];

		if (isspace(c) || c < ' ' || c == 0x7f)
		{
			space = out.len > 0;
			continue;
		}
		if (space)
			appendStringInfoChar(&out, ' ');
		space = false;
		appendStringInfoChar(&out, c);
	}
	/* not to end within a character */
	if (used < size)
	{
		while (out.len > 0 && IS_HIGHBIT_SET(out.data[out.len - 1]))
			out.data[--out.len] = '\0';
		appendStringInfoString(&out, " ...");
	}
	return out.len > 0 ? out.data : NULL;
}

static const char *
status_hint(const SagaHttpResponse *response)
{
	switch (response->status)
	{
		case 401:
		case 403:
			return "Look at the credentials in the user mapping.";
		case 404:
		case 405:
			return "Look at the method and the path of the step, and at the server's option url.";
		default:
			return response->status >= 300 && response->status < 400 ?
				"Redirects are not followed: set the server's option url to where the service is." : NULL;
	}
}

static void
answer_failure(SagaConnCall *call, SagaHttpResponse *response)
{
	char		code[6];
	char	   *line = excerpt(response->status_line, strlen(response->status_line));
	char	   *detail = excerpt(response->body, response->size);

	snprintf(code, sizeof(code), "H0%03d", response->status % 1000);
	if (response->location)
		detail = psprintf("It redirects to %s",
						  excerpt(response->location, strlen(response->location)));
	saga_call_error(call, saga_classify_sqlstate(code, NULL), code,
					psprintf("server \"%s\" answered %s",
							 call->endpoint->server->name, line ? line : code + 2),
					detail, status_hint(response));
	if (response->retry_after > 0)
		call->answer.retry_after = Min(response->retry_after, MAX_RETRY_AFTER);
}

static bool
is_text(const char *content_type)
{
	return content_type != NULL && pg_strncasecmp(content_type, "text/", 5) == 0;
}

/*
 * Other encodings of the database than UTF-8: JSON has escapes for all that is
 * not ASCII, which are converted when they are read.
 */
static char *
ascii_json(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	while (*text)
	{
		if (IS_HIGHBIT_SET(*text))
		{
			pg_wchar	c = utf8_to_unicode((const unsigned char *) text);

			if (c >= 0x10000)
				appendStringInfo(&out, "\\u%04x\\u%04x",
								 0xd800 + ((c - 0x10000) >> 10),
								 0xdc00 + ((c - 0x10000) & 0x3ff));
			else
				appendStringInfo(&out, "\\u%04x", c);
			text += pg_utf_mblen((const unsigned char *) text);
		}
		else
			appendStringInfoChar(&out, *text++);
	}
	return out.data;
}

/* The body as text of this database, or NULL with *problem set. */
static char *
body_text(const SagaHttpResponse *response, const char **problem)
{
	char	   *text = response->body;
	bool		ascii = true;

	if (pg_encoding_verifymbstr(PG_UTF8, text, response->size) != (int) response->size)
	{
		*problem = "the result is not usable: the body is not UTF-8";
		return NULL;
	}
	if (strncmp(text, "\xef\xbb\xbf", 3) == 0)
		text += 3;
	for (const char *p = text; *p; p++)
		ascii &= !IS_HIGHBIT_SET(*p);
	if (ascii || GetDatabaseEncoding() == PG_UTF8 ||
		GetDatabaseEncoding() == PG_SQL_ASCII)
		return text;
	if (!is_text(response->content_type))
		return ascii_json(text);
	*problem = "the result is not usable: the body is text that cannot be converted from UTF-8";
	return NULL;
}

static void
answer_success(SagaConnCall *call, SagaHttpResponse *response)
{
	SagaAnswer *answer = &call->answer;
	const char *problem = NULL;
	char	   *text = NULL;

	answer->kind = response->status == 202 && call->request.callback ?
		SAGA_ANSWER_ACCEPTED : SAGA_ANSWER_DONE;
	answer->http_status = response->status;
	answer->ran = true;
	answer->text_result = is_text(response->content_type);
	if (response->size > 0)
		text = body_text(response, &problem);
	if (text != NULL && text[strspn(text, " \t\r\n")] != '\0')
		answer->result = MemoryContextStrdup(call->context, text);
	if (problem != NULL)
		answer->message = MemoryContextStrdup(call->context, problem);
}

void
saga_http_answer(SagaConnCall *call, const SagaHttpRequest *request,
				 SagaHttpResponse *response)
{
	bool		success = response->status >= 200 && response->status < 300;

	if (response->body)
		redact(response->body, response->size, request,
			   success ? SECRET_RESULT : SECRET_ERROR);
	redact(response->status_line, strlen(response->status_line), request,
		   SECRET_ERROR);
	if (success)
		answer_success(call, response);
	else
		answer_failure(call, response);
}
