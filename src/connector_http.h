/*
 * connector_http.h
 *		Between connector_http.c (how a request travels) and http_message.c
 *		(what stands in it, and what an answer means).
 */
#ifndef SAGA_CONNECTOR_HTTP_H
#define SAGA_CONNECTOR_HTTP_H

#include "postgres.h"

#include <curl/curl.h>

#include "nodes/pg_list.h"

#include "connector_internal.h"

/* A request as libcurl takes it; all of it lives as long as the call. */
typedef struct SagaHttpRequest
{
	const char *method;
	char	   *url;
	char	   *body;			/* or NULL */
	bool		safe;			/* may be sent twice without a second thought */
	struct curl_slist *headers; /* libcurl's; to be freed by the user */
	List	   *secrets;		/* texts that must not come back to a reader */
} SagaHttpRequest;

/* An answer, or as much of it as came. */
typedef struct SagaHttpResponse
{
	int			status;			/* 0: no complete head came */
	char		status_line[128];
	char	   *body;			/* NULL: empty; ends with a zero byte */
	size_t		size;
	bool		complete;
	const char *content_type;	/* or NULL */
	const char *location;		/* where a redirect leads, or NULL */
	SagaTime	retry_after;
} SagaHttpResponse;

/*
 * Build it, in the current memory context.  False, and the call answered but
 * not finished, if that cannot be.
 */
extern bool saga_http_request(SagaConnCall *call, SagaHttpRequest *request);

/*
 * What an answer means, into call->answer.  Its status is known, and if that
 * is a success it is complete.
 */
extern void saga_http_answer(SagaConnCall *call, const SagaHttpRequest *request,
							 SagaHttpResponse *response);

#endif							/* SAGA_CONNECTOR_HTTP_H */
