CREATE INDEX "Score_userId_idx" ON "Score"("userId");
